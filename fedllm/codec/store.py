"""Codecs in files: one of a run, and a machine's cache of those it was sent, each named by its hash."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedllm.codec import codec_from_state
from fedllm.codec.base import Codec, state_digest
from fedllm.files.durable import write_bytes
from fedllm.models.embedded import cache_folder

_KEPT = 4
MOST_STORED = 16
"""Codecs in a machine's cache at most."""
LARGEST_NORM = 1e5
"""Largest norm of a codec's tensor: far above any fitted codec, and small enough that no product of tensors
overflows."""
_loaded: dict[str, Codec] = {}
_lock = threading.Lock()


class CodecMissing(ValueError):
    """A codec that no one has sent here yet."""


def write_codec(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a codec's state into one safetensors file, whole or not at all; durable when it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_bytes(path, save(plain, metadata={"fedllm": json.dumps(meta, sort_keys=True)}))


def read_codec(path: Path, version: str) -> Codec:
    """Return the codec in a file.

    Raises:
        ValueError: there is none, or it is not the one of this version (a changed file).
    """
    try:
        with safe_open(path, "pt") as opened:
            meta = json.loads((opened.metadata() or {})["fedllm"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"Expected a codec in {path}: {error}") from None
    return checked_codec(tensors, meta, version, str(path))


def checked_codec(
    tensors: Mapping[str, Tensor], meta: Mapping[str, Any], version: str, source: str
) -> Codec:
    """Return the codec with this state, after comparing the state with its hash.

    Raises:
        ValueError: another hash, or no state of a codec.
    """
    found = state_digest(tensors, meta)
    if found != version:
        raise ValueError(
            f"Expected the codec of version {version[:12]} in {source}, got another one "
            f"({found[:12]}): it was changed"
        )
    return codec_from_state(tensors, meta)


def keep_in_store(tensors: Mapping[str, Tensor], meta: Mapping[str, Any], version: str) -> None:
    """Keep a codec that came with its version, for this process and for later ones.

    On disk the :data:`MOST_STORED` last used are kept. One that is gone is asked for again.

    Raises:
        ValueError: it is not the codec of this version, has numbers that are not finite or are too large, or
            something that is no part of such a codec.
    """
    for name, value in tensors.items():
        size = float(torch.linalg.vector_norm(value.double())) if value.is_floating_point() else 0.0
        if not size <= LARGEST_NORM:  # NaN and infinite values too
            raise ValueError(
                f"Expected finite numbers in a codec, of norm at most {LARGEST_NORM:g} in each tensor, got "
                f"{size:g} in {name}"
            )
    codec = checked_codec(tensors, meta, version, "the message")
    if codec.version != version:
        raise ValueError(
            f"Expected the state of a codec {codec.name} and nothing else, got one that also holds other things"
        )
    path = _stored(version)
    try:
        read_codec(path, version)
    except ValueError:  # not there, or damaged
        write_codec(path, tensors, meta)
    _remove_unused(path)
    _remember(version, codec)


def _remove_unused(used: Path) -> None:
    """Remove the files that were not used for longest, but for the last :data:`MOST_STORED`."""
    with contextlib.suppress(OSError):
        os.utime(used)
        files = sorted(used.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        for file in files[:-MOST_STORED]:
            file.unlink(missing_ok=True)


def codec_from_store(version: str) -> Codec:
    """Return the codec of a version that was kept before.

    Raises:
        CodecMissing: it was not, or its file is damaged.
    """
    with _lock:
        if version in _loaded:
            return _loaded[version]
    try:
        codec = read_codec(_stored(version), version)
    except ValueError as error:
        raise CodecMissing(str(error)) from None
    _remember(version, codec)
    return codec


def _remember(version: str, codec: Codec) -> None:
    with _lock:
        _loaded.pop(version, None)
        _loaded[version] = codec
        while len(_loaded) > _KEPT:
            _loaded.pop(next(iter(_loaded)))


def _stored(version: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{64}", version):
        raise CodecMissing(f"Expected a codec's version of 64 hexadecimal digits, got {version!r}")
    return cache_folder() / "codecs" / f"{version}.safetensors"
