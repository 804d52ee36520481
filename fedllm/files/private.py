"""Write files that only their owner may read: mode 0600, in a folder of mode 0700 where it is created."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedllm.files.durable import fsync_folder

log = logging.getLogger("fedllm.silo")


def append_private(path: Path, text: str) -> None:
    """Append `text` to a file; create the file with mode 0600 and its folder with mode 0700.

    A file or folder that exists keeps its mode. Characters outside UTF-8 are escaped.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def write_private(path: Path, data: bytes) -> None:
    """Replace a file by `data` in one step, mode 0600; it is on the disk when this returns.

    Raises:
        OSError: the file cannot be written; the old one is still there.
    """
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:  # mkstemp made it with mode 0600
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def note(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record to a silo's own log, as a line of JSON.

    Logs never decide: one that cannot be written is a warning, and the task continues.
    """
    try:
        append_private(path, json.dumps(record) + "\n")
    except OSError as error:
        log.warning("cannot write the silo's log %s: %s", path, error)
