"""Heads: how far a ledger went, kept outside of its file, so that an older file is noticed.

A ledger's chain of hashes tells that rows follow each other. It cannot tell that there were more of them: a
backup of yesterday, a deleted file made again and a copy that another machine continues with are whole chains, too.
A *head* (number of rows, hash of the last one) that lies elsewhere can. A ledger holds a head where its row of that
number has that hash.

Order of writes: a row is durable in the ledger first, and only then a head records it. So a head is never
ahead of its ledger, whenever a process is killed or the power fails; it may lag. A head that the ledger lacks
is then no accident of a crash: the file was rolled back, replaced or forked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from privacy.ledger.error import LedgerError

GENESIS = "0" * 64
"""Hash before the first row."""

_SIZE = 512  # bytes of a head's file: one sector, so that a power cut leaves the old text or the new one
_MARK = "fedllm-ledger-head"
_TEXT = re.compile(rf"{_MARK} 1 (\d{{1,18}}) ([0-9a-f]{{64}}) ([0-9a-f]{{16}})\s*")
_HEAD = re.compile(r"(\d{1,18}):([0-9a-f]{64})")
_TRIES, _PAUSE = 20, 0.005  # of reading while another process writes


class Head(NamedTuple):
    """The last row of a ledger: its number and hash.

    Attributes:
      rows: Number of its rows, which is the number (id) of the last one.
      hash: Hash of the last row; zeros for no row.
    """

    rows: int
    hash: str

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.rows}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ROWS:HASH; ValueError if it is not one.

        >>> Head.parse("0:" + "0" * 64).rows
        0
        """
        found = _HEAD.fullmatch(text)
        if found is None:
            raise ValueError(f"Expected a head as ROWS:HASH (64 hex digits), got {text[:100]!r}")
        return cls(int(found[1]), found[2])


EMPTY = Head(0, GENESIS)
"""The head of a ledger without rows."""


def head_beside(ledger: Path) -> Path:
    """Return the place of the head that lies next to a ledger's file."""
    return ledger.with_name(f"{ledger.name}.head")


class HeadFile:
    """A head in a separate file: 512 bytes of text, with a check of its own."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is not looked at."""
        self.path = path

    def read(self) -> Head | None:
        """Return the head; None if there is no file.

        Raises:
          LedgerError: It cannot be read, or holds something else.
        """
        for attempt in range(_TRIES):
            try:
                handle = self._open(os.O_RDONLY)
            except FileNotFoundError:
                return None
            try:
                found = _parse(os.read(handle, _SIZE + 1))
            finally:
                os.close(handle)
            if found is not None:
                return found
            if attempt < _TRIES - 1:
                time.sleep(_PAUSE)  # another process may be writing it just now
        raise LedgerError(f"Expected a ledger's head, got a damaged file: {self.path}")

    def create(self, head: Head) -> None:
        """Make the file, durably, unless it is there.

        Raises:
          LedgerError: It cannot be made.
        """
        if not os.path.lexists(self.path):
            self._put(head, keep=True)

    def replace(self, head: Head) -> None:
        """Replace the head, durably.

        Raises:
          LedgerError: It cannot be written.
        """
        self._put(head, keep=False)

    def advance(self, head: Head) -> None:
        """Write a head over an earlier one; a later one stays.

        It is not flushed: after a power cut the head may lag, and what is lost is the notice of a roll-back of
        the very last rows. After a kill it does not lag.

        Raises:
          LedgerError: There is no head's file any more, or it cannot be written.
        """
        try:
            handle = self._open(os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                known = _parse(os.pread(handle, _SIZE + 1, 0))
                if known is None or known.rows < head.rows:
                    os.pwrite(handle, _text(head), 0)
            finally:
                os.close(handle)
        except OSError as error:
            raise LedgerError(
                f"Cannot write the ledger's head {self.path}: {error}; nothing may be released"
            ) from error

    def _open(self, flags: int) -> int:
        try:
            handle = os.open(self.path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise LedgerError(f"Cannot open the ledger's head {self.path}: {error}") from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise LedgerError(f"Expected a ledger's head, got no plain file: {self.path}")
        return handle

    def _put(self, head: Head, *, keep: bool) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_text(head))
                    file.flush()
                    os.fsync(file.fileno())
                if keep:
                    with contextlib.suppress(FileExistsError):
                        os.link(name, self.path)
                else:
                    os.replace(name, self.path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise LedgerError(f"Cannot make the ledger's head {self.path}: {error}") from error


def _check(head: Head) -> str:
    return sha256(f"{_MARK} {head.rows}:{head.hash}".encode()).hexdigest()[:16]


def _text(head: Head) -> bytes:
    return f"{_MARK} 1 {head.rows} {head.hash} {_check(head)}".ljust(_SIZE - 1).encode() + b"\n"


def _parse(data: bytes) -> Head | None:
    found = _TEXT.fullmatch(data.decode("ascii", errors="replace"))
    if found is None or len(data) != _SIZE:
        return None
    head = Head(int(found[1]), found[2])
    return head if found[3] == _check(head) else None
