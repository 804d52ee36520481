"""List a model's weight files and check that they are complete, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from transformers.utils import cached_file

from fedllm.models.model_error import ModelError

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_SIZE = 1024


def weight_files(source: str, revision: str | None) -> tuple[Path, ...]:
    """Return the local files that hold the weights (safetensors first, then PyTorch's own)."""
    if Path(source).is_dir():
        folder = Path(source)
    else:
        config = cached_file(source, "config.json", revision=revision)
        folder = Path(cast(str, config)).parent
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            return tuple(files)
    return ()


def require_no_pointers(name: str, folder: Path) -> None:
    """Refuse a folder in which a file is a pointer of Git LFS instead of the file itself.

    Raises:
        ModelError: one is; it is named.
    """
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        if file.stat().st_size < _POINTER_SIZE and file.read_bytes().startswith(_POINTER):
            raise ModelError(
                f"Expected the files of model={name!r}, got a pointer of Git LFS in the place of {file.name}; "
                "fetch it with `git lfs pull`"
            )


def require_whole_files(name: str, files: Iterable[Path]) -> None:
    """Refuse safetensors files that are cut short, and checkpoints of which a file is missing.

    Raises:
        ModelError: the file, its size and what it should be.
    """
    folders = set()
    for file in files:
        folders.add(file.parent)
        if file.suffix == ".safetensors":
            _require_whole(name, file)
    for folder in folders:
        index = folder / "model.safetensors.index.json"
        if not index.is_file():
            continue
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"Expected an index of weights, got a damaged {index.name} of model={name!r} ({error!r})"
            ) from error
        missing = sorted(shard for shard in shards if not (folder / str(shard)).is_file())
        if missing:
            raise ModelError(
                f"Expected {len(shards)} weight files of model={name!r}, got none named {', '.join(missing[:4])}"
            )


def _require_whole(name: str, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        wanted = 8 + length
        if wanted <= size:
            try:
                header = json.loads(opened.read(length))
                ends = [e["data_offsets"][1] for key, e in header.items() if key != "__metadata__"]
                wanted += max(ends, default=0)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(
                    f"Expected a safetensors file, got a damaged {file.name} of model={name!r}"
                ) from error
    if wanted != size:
        raise ModelError(
            f"Expected a whole weight file, got {file.name} of model={name!r} with {size} bytes, which is damaged "
            f"or cut short ({wanted} bytes by its own header)"
        )
