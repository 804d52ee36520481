"""Copy a ledger's files privately, to read what SQLite cannot read in place without writing.

That is a ledger of an earlier version (WAL mode: `mode=ro` makes -wal and -shm files), and one whose writer was
killed in the midst of a commit: SQLite undoes the commit by the -journal next to, and may not write here. So the
file and what lies next to it are copied, and SQLite recovers the copy. The copy counts if none of them changed
meanwhile; it is then what a crash at that moment would have left.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_SETTLED = 0.02  # seconds: more than the step of a file system's clock
_ATTEMPTS = 6


def beside(path: Path) -> tuple[Path, Path]:
    """Return the places of the -wal and the -journal of a database."""
    return path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-journal")


def copied(path: Path, timeout: float) -> tuple[sqlite3.Connection, Callable[[], None]] | None:
    """Connect SQLite to a private copy; None while others keep writing.

    The caller knows that this process has no connection to the file: it is opened and closed here.

    Returns:
      The connection, and what removes the copy.
    """
    for _ in range(_ATTEMPTS):
        before = _state(path)
        age = time.time() - max(state[2] for state in before if state) / 1e9
        if 0 <= age < _SETTLED:
            time.sleep(_SETTLED - age)
            continue
        folder = tempfile.TemporaryDirectory(prefix="fedllm-ledger-")
        copy = Path(folder.name) / "ledger.sqlite"
        try:
            shutil.copyfile(path, copy)
            for source, target in zip(beside(path), beside(copy), strict=True):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(source, target, follow_symlinks=False)
            if _state(path) == before:
                connection = sqlite3.connect(
                    copy, timeout=timeout, isolation_level=None, check_same_thread=False
                )
                return connection, folder.cleanup
        except BaseException:
            folder.cleanup()
            raise
        folder.cleanup()
    return None


def _state(path: Path) -> list[tuple[int, int, int] | None]:
    """Return a value that changes whenever one of the files does; see `_SETTLED`."""
    found: list[tuple[int, int, int] | None] = []
    for file in (path, *beside(path)):
        try:
            status = file.lstat()
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            found.append(None)
    return found
