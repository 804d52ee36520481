"""Keep a silo's durable record of the sums of one run: its master secret, the roster, the sessions it masked and opened.

One file a run, mode 0600, replaced atomically, and read and written under a lock: two processes that race, a restart and a resumed run
meet the same record. What a session reveals leaves the silo only after the record says so.

Limits. A file copied back from a backup has forgotten sessions, so the silo could be made to mask one of them twice; and whoever reads
the file and kept the run's messages learns this silo's vectors under its own share of the noise alone. So the file belongs on the silo's
own disk, out of backups, and may be deleted once the run has ended.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock

from fedllm.files.private import write_private
from fedllm.secure import keys, reading, shamir
from fedllm.secure.errors import SumRefused

_FIELDS = ("form", "run", "name", "master", "roster", "masked", "opened", "shares")
_FORM = 1
_LONGEST = 8_000_000


@dataclass(frozen=True)
class State:
    """A record's content.

    Attributes:
        run, name: whose it is.
        master: 32 secret bytes that all keys of the run are derived from.
        roster: text of the roster, None before the silo joined.
        masked: the last session that was masked, 0 for none.
        opened: the last session that was opened, 0 for none.
        shares: of the last masked session until it is opened, by silo that gave some (this one among them): the share of its private
            key and of its self-mask's seed.
    """

    run: str
    name: str
    master: bytes
    roster: str | None = None
    masked: int = 0
    opened: int = 0
    shares: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict)

    def joined(self, roster: str) -> State:
        """Return the state after joining a roster."""
        return replace(self, roster=roster)

    def after_mask(self, session: int, shares: Mapping[str, tuple[bytes, bytes]]) -> State:
        """Return the state after masking a session.

        Raises:
            SumRefused: it is not above the last masked one.
        """
        if session <= self.masked:
            raise SumRefused(
                f"Expected a session above {self.masked}, the last that silo {self.name!r} masked, got {session}"
            )
        return replace(self, masked=session, shares=dict(shares))

    def after_open(self, session: int) -> State:
        """Return the state after opening a session: its shares are forgotten.

        Raises:
            SumRefused: it is not the last masked one, or was opened before.
        """
        if session != self.masked or session <= self.opened:
            raise SumRefused(
                f"Expected the session {self.masked} that silo {self.name!r} masked last and did not open, got {session}"
            )
        return replace(self, opened=session, shares={})


class Record:
    """The record's file."""

    def __init__(self, folder: Path, run: str, name: str) -> None:
        """Name the file by hash of run and silo, since both may come from a server; nothing is read or written yet."""
        self.path = folder / f"sums-{keys.digest('record', run, name).hex()[:32]}.json"
        self._run, self._name = run, name

    def read(self) -> State:
        """Return the state; a file with a new master secret is made where there is none.

        Raises:
            SumRefused: the file cannot be read, or is not this silo's record of this run.
        """
        with self._locked():
            return self._read()

    @contextmanager
    def change(self) -> Iterator[Change]:
        """Lock the file and give its state; `Change.keep` replaces it before the lock is released.

        Raises:
            SumRefused: as :meth:`read`; or the file cannot be written.
        """
        with self._locked():
            yield Change(self._read(), self)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = FileLock(f"{self.path}.lock", mode=0o600)
            lock.acquire()
        except (OSError, NotImplementedError) as error:  # the second: a file system without locks
            raise SumRefused(f"Cannot lock the record of sums {self.path}: {error}") from error
        try:
            yield
        finally:
            lock.release()

    def _read(self) -> State:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            state = State(self._run, self._name, secrets.token_bytes(keys.KEY_BYTES))
            self._write(state)
            return state
        except (OSError, UnicodeError) as error:
            raise SumRefused(f"Cannot read the record of sums {self.path}: {error}") from error
        try:
            return self._parse(text)
        except SumRefused as error:
            raise SumRefused(f"Expected a record of sums in {self.path}: {error}") from None

    def _parse(self, text: str) -> State:
        value = reading.read_object(
            text, "a record of sums", _FIELDS, length=_LONGEST, longest_text=4_000_000
        )
        if (value["form"], value["run"], value["name"]) != (_FORM, self._run, self._name):
            raise SumRefused(f"the record of silo {self._name!r} for the run {self._run!r}")
        if value["roster"] is not None and not isinstance(value["roster"], str):
            raise SumRefused("a roster's text")
        size = shamir.SHARE_BYTES
        pairs = {
            name: reading.read_hex(item, "shares", 2 * size)
            for name, item in reading.read_by_name(value["shares"], "shares").items()
        }
        return State(
            self._run,
            self._name,
            reading.read_hex(value["master"], "a master secret", keys.KEY_BYTES),
            value["roster"],
            reading.read_session(value["masked"], 0),
            reading.read_session(value["opened"], 0),
            {name: (pair[:size], pair[size:]) for name, pair in pairs.items()},
        )

    def _write(self, state: State) -> None:
        shares = {name: (pair[0] + pair[1]).hex() for name, pair in state.shares.items()}
        value = {
            "form": _FORM, "run": state.run, "name": state.name, "master": state.master.hex(),
            "roster": state.roster, "masked": state.masked, "opened": state.opened, "shares": shares,
        }  # fmt: skip
        try:
            write_private(self.path, reading.write(value).encode("ascii"))
        except OSError as error:
            raise SumRefused(f"Cannot write the record of sums {self.path}: {error}") from error


class Change:
    """The state of a locked record, and the way to replace it."""

    def __init__(self, state: State, record: Record) -> None:
        """Keep both."""
        self.state = state
        self._record = record

    def keep(self, state: State) -> None:
        """Replace the state; it is on the disk when this returns."""
        self._record._write(state)
        self.state = state
