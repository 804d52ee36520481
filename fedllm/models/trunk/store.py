"""Keep the states of examples by a key, in memory or in a file without a name, up to a number of bytes.

What is kept is a function of one example and of the frozen model. It is private, stays in this process, and is gone
with it: the file has no name from the start, so that no crash leaves it behind.
"""

from __future__ import annotations

import os
import tempfile
import threading
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Store(Protocol):
    """States by key.

    Attributes:
        limit: bytes that may be kept.
    """

    limit: int

    @property
    def used(self) -> int:
        """Bytes that are kept."""
        ...

    def get(self, key: bytes) -> Tensor | None:
        """Return the states (tokens, hidden) of a key, on the CPU; None where they are not kept."""
        ...

    def put(self, key: bytes, states: Tensor) -> None:
        """Keep states (tokens, hidden), if there is room."""
        ...


class MemoryStore:
    """States in memory.

    Args:
        limit: bytes; what comes when they are used up is not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self._used = limit, 0
        self._kept: dict[bytes, Tensor] = {}
        self._writing = threading.Lock()

    @property
    def used(self) -> int:
        return self._used

    def get(self, key: bytes) -> Tensor | None:
        return self._kept.get(key)

    def put(self, key: bytes, states: Tensor) -> None:
        size = states.numel() * states.element_size()
        with self._writing:
            if key not in self._kept and self._used + size <= self.limit:
                self._kept[key] = states.detach().cpu().clone()
                self._used += size


class DiskStore:
    """States in one file without a name, mapped into memory as they are read.

    Args:
        limit: bytes of the file.
        folder: where it lies; None: the system's folder for temporary files.
    """

    def __init__(self, limit: int, folder: str | None = None) -> None:
        self.limit, self._end = limit, 0
        self._file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - open as long as the store
        self._writing = threading.Lock()
        self._places: dict[bytes, tuple[int, tuple[int, ...], torch.dtype]] = {}

    @property
    def used(self) -> int:
        return self._end

    def get(self, key: bytes) -> Tensor | None:
        place = self._places.get(key)
        if place is None:
            return None
        start, shape, dtype = place
        size = int(np.prod(shape)) * torch.empty((), dtype=dtype).element_size()
        # Not seek and read: another thread in between would give this example the states of another one.
        data = bytearray(os.pread(self._file.fileno(), size, start))
        if len(data) != size:  # somebody cut the file: computed anew
            self._places.pop(key, None)
            return None
        return torch.frombuffer(data, dtype=dtype).reshape(shape)

    def put(self, key: bytes, states: Tensor) -> None:
        plain = states.detach().cpu().contiguous()
        data = plain.view(torch.uint8).numpy().tobytes()
        with self._writing:
            if key in self._places or self._end + len(data) > self.limit:
                return
            try:
                written = os.pwrite(self._file.fileno(), data, self._end)
            except OSError:
                written = 0
            if written != len(
                data
            ):  # the disk is full: the states so far are used, no more are added
                self.limit = self._end
                return
            self._places[key] = (self._end, tuple(plain.shape), plain.dtype)
            self._end += len(data)
