"""Append to files that only their owner may read: mode 0600, in a folder of mode 0700 where it is created."""

from __future__ import annotations

import os
from pathlib import Path


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
