"""Text data by the ``datasets`` library: a hub id, a folder of data files, or a saved data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedllm.data.formats.records import DataError, Record, TextDataset


def load_hub(
    path: str,
    *,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    columns: Sequence[str] | None = None,
    limit: int | None = None,
) -> TextDataset:
    """Load one split of a data set: its hub id, a folder with data files, or one that
    ``save_to_disk`` wrote.

    Class labels stay the integers that the data set stores. Code from the hub is never run.
    Raises DataError where ``datasets`` is not installed, the data set cannot be had (offline,
    unknown id, access refused), there is no such subset, split or column, or the split is empty.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"Expected the datasets library for data.source=hub (data.path={path}), got none "
            "installed; pip install huggingface-hub datasets"
        ) from error
    try:
        data: Any = _load(datasets, path, subset, split, revision)
    except DataError:
        raise
    except Exception as error:  # the library raises its own, its file systems' and its client's
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise DataError(
            f"Expected a data set on the hub, reachable or cached, or a local folder, got "
            f"data.path={path} (subset={subset}, split={split}): {reason}. Offline, use a local "
            "folder or the files source."
        ) from error
    wanted = tuple(columns) if columns is not None else tuple(data.column_names)
    for column in wanted:
        if column not in data.column_names:
            raise DataError(
                f"Expected column '{column}' in {path}, got columns {', '.join(data.column_names)}"
            )
    if limit is not None:
        data = data.select(range(min(limit, len(data))))
    records: list[Record] = data.select_columns(list(wanted)).to_list()
    if not records:
        raise DataError(f"Expected at least one example in split {split} of {path}, got none")
    return TextDataset(records, f"{path}/{split}", wanted)


def _load(datasets: Any, path: str, subset: str | None, split: str, revision: str | None) -> Any:
    folder = Path(path)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        saved = datasets.load_from_disk(path)
        if not isinstance(saved, datasets.DatasetDict):
            return saved
        if split not in saved:
            raise DataError(
                f"Expected a split among {', '.join(saved)} in data.path={path}, got split={split}"
            )
        return saved[split]
    return datasets.load_dataset(path, subset, split=split, revision=revision)
