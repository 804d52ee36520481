"""Checkpoints: the released model and the server's state after a round, whole or not there.

``FOLDER/round-00012/`` holds ``params.safetensors`` (the trainable tensors), ``state.safetensors``
(the optimiser's tensors and the like) and ``meta.json`` (the caller's values, and a SHA-256 of each
part). It is written to a folder next to it, flushed to disk, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedllm.files.durable import fsync_folder, json_bytes, plain

PARAMS = "params.safetensors"
STATE = "state.safetensors"
META = "meta.json"
_FORMAT, _VERSION = "fedllm-checkpoint", 1
_NAME = re.compile(r"round-(\d+)(\.old)?")
_PARTIAL = ".partial-"


class CheckpointError(ValueError):
    """A checkpoint is incomplete, damaged, or of another format; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint.

    Attributes:
        path: its folder.
        round: rounds of training behind it.
        params: trainable tensors by name, sorted by name, on the CPU.
        state: further tensors by name (the server optimiser's).
        meta: the caller's values.
    """

    path: Path
    round: int
    params: dict[str, Tensor]
    state: dict[str, Tensor]
    meta: dict[str, Any]


def save_checkpoint(
    folder: Path,
    round: int,
    params: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
) -> Path:
    """Write a checkpoint; it is on disk, whole, when this returns. One of the same round gives way.

    Args:
        folder: the folder of all checkpoints; made where it is missing.
        round: number of finished rounds, >= 0.
        meta: anything that JSON holds.

    Returns:
        The checkpoint's own folder.

    Raises:
        ValueError: a negative round.
    """
    if round < 0:
        raise ValueError(f"Expected round >= 0, got round={round}")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"round-{round:05d}"
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=_PARTIAL))
    try:
        files = {PARAMS: _tensor_bytes(params), STATE: _tensor_bytes(state)}
        inner = plain(dict(meta))
        head = {
            "format": _FORMAT,
            "version": _VERSION,
            "round": round,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            "meta": inner,
        }
        files[META] = json_bytes(head | {"sha256": _digest(head)})
        for name, data in files.items():
            with open(partial / name, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        os.chmod(partial, 0o755)
        fsync_folder(partial)
        _put(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and check it against its digests.

    Raises:
        CheckpointError: a file is missing, damaged or of another format; the message names it.
    """
    try:
        head = json.loads((path / META).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"The checkpoint {path} is incomplete: no {META}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The checkpoint {path} is damaged: {META}: {error}") from None
    if not isinstance(head, dict) or head.get("format") != _FORMAT:
        raise CheckpointError(f"Expected a checkpoint, got another {META} in {path}")
    if head.get("version") != _VERSION:
        raise CheckpointError(
            f"Expected version {_VERSION} of the checkpoint {path}, got {head.get('version')!r}"
        )
    if head.pop("sha256", None) != _digest(head):
        raise CheckpointError(f"The checkpoint {path} is damaged: {META} does not match its digest")
    tensors = {}
    for name in (PARAMS, STATE):
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"The checkpoint {path} is incomplete: {error}") from None
        if hashlib.sha256(data).hexdigest() != head["files"].get(name):
            raise CheckpointError(f"The checkpoint {path} is damaged: {name} was changed")
        try:
            tensors[name] = load(data)
        except SafetensorError as error:
            raise CheckpointError(f"The checkpoint {path} is damaged: {name}: {error}") from None
    params, state = (dict(sorted(tensors[name].items())) for name in (PARAMS, STATE))
    return Checkpoint(path, int(head["round"]), params, state, head["meta"])


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the checkpoint of the highest round that is whole; a warning names each that is not."""
    for path in reversed(_paths(folder)):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            warnings.warn(f"Skipped: {error}", stacklevel=2)
    return None


def keep(folder: Path, n: int) -> list[Path]:
    """Delete all but the ``n`` checkpoints of the highest rounds, and remains of crashes.

    Returns:
        The folders deleted.

    Raises:
        ValueError: ``n`` < 1.
    """
    if n < 1:
        raise ValueError(f"Expected at least 1 checkpoint to keep, got n={n}")
    whole = [path for path in _paths(folder) if path.suffix != ".old"]
    extra = set(_paths(folder)) - set(whole)
    doomed = whole[:-n] + sorted(path for path in extra if (folder / path.stem) in whole)
    doomed += sorted(folder.glob(f"{_PARTIAL}*"))
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)
    return doomed


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    # Clones: safetensors refuses tensors that share memory.
    plain_tensors = {
        name: value.detach().cpu().contiguous().clone() for name, value in sorted(tensors.items())
    }
    data: bytes = save(plain_tensors, {"format": "pt"})
    return data


def _digest(head: Mapping[str, Any]) -> str:
    text = json.dumps(head, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _put(partial: Path, target: Path) -> None:
    """Rename into place; a checkpoint that is there already stays readable as ``.old`` meanwhile."""
    old = target.with_name(target.name + ".old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    os.rename(partial, target)
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _paths(folder: Path) -> list[Path]:
    """Return checkpoint folders by round; for one round, the one set aside precedes the one in place."""
    if not folder.is_dir():
        return []
    found = [
        (int(match[1]), not match[2], path)
        for path in folder.iterdir()
        if (match := _NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, _, path in sorted(found)]
