"""Write files atomically: to a temporary file, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step: a crash leaves the old file or the new one."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            with contextlib.suppress(OSError):  # a file system without modes
                os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text by :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def json_bytes(value: Any) -> bytes:
    """Return readable JSON with sorted keys; non-finite numbers as by :func:`plain`."""
    text = json.dumps(plain(value), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


_PLAINED = (float, dict, list, tuple)


def plain(value: Any) -> Any:
    """Return ``value`` with what JSON has no word for: infinite and undefined numbers become the texts "Infinity",
    "-Infinity" and "NaN" (as in protobuf's JSON mapping), tuples become lists."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {
            str(key): plain(item) if isinstance(item, _PLAINED) else item
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item) if isinstance(item, _PLAINED) else item for item in value]
    return value


def fsync_folder(folder: Path) -> None:
    """Make names in a folder durable, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
