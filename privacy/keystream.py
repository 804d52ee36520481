"""Secret random bytes: AES-256 in counter mode, keyed by the operating system.

AES-256-CTR and not ChaCha20, both of which the ``cryptography`` package (OpenSSL) offers: on a processor
with AES instructions it is the faster one, see ``python -m simulations.benchmarks.step_cost --variant noise``. Its output
cannot be told from uniform bytes by anybody who is bounded in computation and lacks the key, as far as
AES-256 is a pseudorandom permutation; the guarantees that are stated for true random numbers hold
against such adversaries (Mironov et al. 2009, "Computational differential privacy").

No counter is used twice: a key serves for one refill of the buffer, with the counter from 0, and the
first 32 bytes of that output replace it (Bernstein 2017, "Fast-key-erasure random-number
generators"). So the memory of a process tells nothing of the bytes that were handed out before.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

CIPHER = "AES-256-CTR"
_KEY = 32
_REFILL = 1 << 16  # bytes handed out for one key
_ZEROS = bytes(_KEY + _REFILL)
_SLACK = 15  # `update_into` asks for room for a block more


class KeyStream:
    """A stream of secret bytes, never shared with another object or process.

    Its 256-bit key is from ``os.urandom``. After a fork both processes continue with different streams:
    the child forgets all and takes a new key. It cannot be pickled or copied. Threads may share it.

    Limits: Python and OpenSSL hold a copy of the key for the time of a refill, which is freed and, in
    Python's case, not overwritten; a snapshot of a whole virtual machine copies the stream's state.
    """

    __slots__ = ("__weakref__", "_buffer", "_lock", "_next", "_process")

    def __init__(self) -> None:
        self._buffer = np.zeros(_KEY + _REFILL + _SLACK, dtype=np.uint8)
        self._take_new_key()
        _streams.add(self)

    def fill(self, out: npt.NDArray[np.uint8]) -> None:
        """Overwrite a one-dimensional, contiguous array with the stream's next bytes."""
        with self._lock:
            if self._process != os.getpid():  # a fork that Python was not told of
                self._take_new_key(self._lock)
            done = 0
            while done < len(out):
                if self._next == _KEY + _REFILL:
                    self._refill()
                count = min(len(out) - done, _KEY + _REFILL - self._next)
                given = self._buffer[self._next : self._next + count]
                out[done : done + count] = given
                given[:] = 0
                self._next += count
                done += count

    def _refill(self) -> None:
        """Overwrite the buffer and its key with the next key and the next output bytes."""
        key = self._buffer[:_KEY].tobytes()
        cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        cipher.update_into(_ZEROS, self._buffer.data)
        self._next = _KEY

    def _take_new_key(self, lock: threading.Lock | None = None) -> None:
        self._lock = (
            lock or threading.Lock()
        )  # after a fork another thread may have held the old one
        self._process = os.getpid()
        self._buffer[:] = 0
        self._buffer[:_KEY] = np.frombuffer(os.urandom(_KEY), dtype=np.uint8)
        self._next = _KEY + _REFILL

    def __del__(self) -> None:
        if hasattr(self, "_buffer"):
            self._buffer[:] = 0

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A KeyStream cannot be pickled or copied: its noise would be drawn twice")

    def __repr__(self) -> str:
        return f"<KeyStream {CIPHER}>"


_streams: weakref.WeakSet[KeyStream] = weakref.WeakSet()


def _after_fork() -> None:
    for stream in _streams:
        stream._take_new_key()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
