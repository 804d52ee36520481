"""The lock of a run folder: one process at a time trains in it.

Two processes of one run would both spend, each in rounds that the other has had. The lock is the system's (``flock``),
so it goes with its process, however that ends: the file of a dead process is no obstacle.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedllm.run.folder import RunFolderError

LOCK = ".lock"


@contextmanager
def sole_use(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a run folder.

    Args:
        folder: the run's folder.
        wait: seconds to wait for another process to end.

    Raises:
        RunFolderError: another process has it still, or the lock cannot be taken; one line, with its process id.
    """
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunFolderError(
            f"Expected a run folder that can be written to, got {folder}: {error.strerror}"
        ) from None
    try:
        _take(handle, folder, wait)
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def _take(handle: int, folder: Path, wait: float) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
                raise RunFolderError(
                    f"Expected a run that no other process works on, {folder} is in use by process "
                    f"{owner or 'unknown'}; wait for it, or stop it first"
                ) from None
            time.sleep(min(0.2, max(wait, 0.01)))
        except OSError as error:
            raise RunFolderError(
                f"Expected a file system with locks (flock) for the run {folder}, got {error.strerror}"
            ) from None
