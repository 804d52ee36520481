"""Build the silos' examples and the server's evaluation examples from the data settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from fedllm.data.formats.hub import load_hub
from fedllm.data.formats.records import BadRows, DataError, Record, TextDataset, require_columns
from fedllm.data.formats.sources import load_file, load_folder
from fedllm.data.formats.tweets import load_tweets
from fedllm.data.holdout import split_holdout, text_hash
from fedllm.data.partition import partition
from fedllm.data.record_forms import in_own_words
from fedllm.data.usable_rows import checked, division_fault, usable_rows
from fedllm.settings.experiment import Settings
from fedllm.settings.kinds import Form, RecordColumns
from fedllm.settings.sections import DataSettings


@dataclass(frozen=True)
class Silo:
    """One organisation's examples. ``held_out`` never trains; it serves the silo's own evaluation."""

    name: str
    train: TextDataset
    held_out: TextDataset


@dataclass(frozen=True)
class Federation:
    """All silos of a simulation, and the server's own examples, which no silo has; maybe none."""

    silos: tuple[Silo, ...]
    evaluation: TextDataset

    @property
    def names(self) -> list[str]:
        return [silo.name for silo in self.silos]


def load_federation(settings: Settings) -> Federation:
    """Load and divide the data; the same in every process for the same settings and seed.

    Raises:
        DataError: the data cannot be read, or cannot be divided as the settings ask.
    """
    return _load(
        settings.data,
        settings.seed,
        settings.task.columns,
        settings.evaluation.clients_holdout,
        settings.evaluation.max_examples,
    )


def load_silo_file(
    path: str | Path,
    name: str,
    *,
    text: Sequence[str] = ("text",),
    target: str = "label",
    labels: Sequence[str] = (),
    form: Form | Literal[""] = "",
    separator: str = "|",
    encoding: str = "utf-8",
    delimiter: str | None = None,
    bad_rows: BadRows = "refuse",
    holdout: float = 0.0,
    holdout_seed: int = 0,
) -> Silo:
    """Load one silo from its own data file, in the format that the silo describes (deployment).

    Every argument is the silo's: whether the file can be read, and how it is divided, does not depend
    on what an experiment asks for, so that neither tells a server anything of the data.

    Args:
        text, target: columns; no other is kept.
        labels: classes, labels or tags that the target is made of; empty for others.
        form: what the columns hold; empty: a class where there are labels, else a text.
        separator: between labels that are written as one text.
        delimiter: of delimited text; None finds it from the header.
        bad_rows: what is done with rows that are no records (:func:`fedllm.data.formats.sources.load_file`), and with
            records that cannot be used (:mod:`fedllm.data.usable_rows`).
        holdout, holdout_seed: share kept for the silo's own evaluation, and the seed of its hash.

    Raises:
        DataError: as :func:`fedllm.data.formats.sources.load_file` and :func:`fedllm.data.usable_rows.checked`.
    """
    own = RecordColumns(
        tuple(text), target, form or ("class" if labels else "text"), tuple(labels), separator
    )
    dataset = load_file(
        path,
        columns=own.names,
        encoding=encoding,
        delimiter=delimiter,
        bad_rows=bad_rows,
    )
    dataset = checked(dataset, own, bad_rows)
    if labels:  # as the silo names them: what an experiment calls its classes must decide nothing
        dataset = replace(dataset, records=[in_own_words(record, own) for record in dataset])
    return _silo(name, dataset, holdout, holdout_seed, text)


def with_columns(silo: Silo, names: Mapping[str, str]) -> Silo:
    """Return the silo with its columns under other names.

    Args:
        names: the new name of each column, by the present one.
    """

    def renamed(dataset: TextDataset) -> TextDataset:
        records = [{names[key]: value for key, value in row.items()} for row in dataset]
        columns = tuple(names[key] for key in dataset.columns)
        return replace(dataset, records=records, columns=columns)

    if all(old == new for old, new in names.items()):
        return silo
    return Silo(silo.name, renamed(silo.train), renamed(silo.held_out))


@lru_cache(maxsize=4)
def validation_set(
    data: DataSettings, columns: RecordColumns, max_examples: int | None, seed: int
) -> TextDataset:
    """Return the examples of ``data.validation``. Nothing else is read: a server needs none of the silos' files.

    Raises:
        DataError: they cannot be read.
    """
    found = _source(data, str(data.validation), columns.names)
    return first_by_hash(found, max_examples, columns.text, seed)


@lru_cache(maxsize=4)
def _load(
    data: DataSettings,
    seed: int,
    columns: RecordColumns,
    clients_holdout: float,
    max_examples: int | None,
) -> Federation:
    text, target = columns.text, columns.target
    divided_by = {"natural": data.silo_column, "dirichlet": target, "pathological": target}.get(
        data.partition
    )
    used = columns.names if divided_by is None else (*columns.names, divided_by)
    train = _source(data, data.train, used)
    if divided_by is not None:
        require_columns(train, (divided_by,))
        train = usable_rows(train, partial(_undivided, divided_by), data.bad_rows)
    train = first_by_hash(train, data.limit, text, seed + 3)
    if data.validation is not None:
        evaluation = validation_set(data, columns, max_examples, seed)
    elif data.holdout > 0:
        train, evaluation = split_holdout(train, data.holdout, seed, columns=text)
        evaluation = first_by_hash(evaluation, max_examples, text, seed)
    else:
        evaluation = train.select([], f"{train.name}/evaluation")
    options: dict[str, object] = {}
    if data.partition == "natural":
        options = {"column": data.silo_column, "names": data.silo_names}
        if data.silo_names is None:
            options.pop("names")
    elif data.partition == "hash":
        options = {"columns": text}
    elif data.partition == "dirichlet":
        options = {"column": target, "alpha": data.alpha}
    elif data.partition == "pathological":
        options = {"column": target, "classes": data.classes_per_silo}
    if data.partition != "natural" and data.silos is None:
        raise DataError(f"Expected data.silos for data.partition={data.partition}, got none")
    parts = partition(
        train,
        kind=data.partition,
        n_parts=data.silos,
        seed=seed,
        min_size=data.min_size,
        small="drop",
        **options,
    )
    silos = tuple(
        _silo(part.name, train.select(part.indices, part.name), clients_holdout, seed, text)
        for part in parts
    )
    return Federation(silos, evaluation)


def _undivided(column: str, record: Record) -> str | None:
    """Return the reason why a record has no silo, or None if it has one."""
    fault = division_fault(record[column])
    return None if fault is None else f"column {column!r}: {fault}"


def _silo(name: str, dataset: TextDataset, holdout: float, seed: int, text: Sequence[str]) -> Silo:
    if holdout == 0:
        return Silo(name, dataset, dataset.select([], f"{name}/holdout"))
    # Another seed than the server's holdout: the same hash would hold out the same texts.
    train, held_out = split_holdout(dataset, holdout, seed + 1, columns=text)
    return Silo(name, train, held_out)


def _source(data: DataSettings, part: str, columns: tuple[str, ...]) -> TextDataset:
    """Read one part of the data; of files, only the named columns."""
    if data.source == "tweets":
        return load_tweets()
    if data.source == "hub":
        return load_hub(str(data.path), subset=data.subset, split=part)
    path = Path(str(data.path)) / part
    if path.is_dir():
        return load_folder(
            path,
            silo_column=data.silo_column,
            columns=columns,
            encoding=data.encoding,
            delimiter=data.delimiter,
            bad_rows=data.bad_rows,
        )
    return load_file(
        path,
        columns=columns,
        encoding=data.encoding,
        delimiter=data.delimiter,
        bad_rows=data.bad_rows,
    )


def first_by_hash(
    dataset: TextDataset, count: int | None, text: Sequence[str], seed: int
) -> TextDataset:
    """Return the ``count`` examples with the smallest hashes of their ``text`` columns, in the data's order; all of
    them where there are no more, or ``count`` is None."""
    if count is None or len(dataset) <= count:
        return dataset
    order = sorted(
        range(len(dataset)), key=lambda row: (text_hash(dataset.records[row], text, seed + 2), row)
    )
    return dataset.select(sorted(order[:count]), dataset.name)
