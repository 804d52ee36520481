"""The ledger: a durable, append-only, hash-chained list of uses of private data.

Write-ahead spending: an entry is appended, and durable, before the noisy value leaves the process
that made it. A crash in between over-counts by one event; none can under-count.

One SQLite file (WAL, synchronous=FULL). Each row holds the SHA-256 of the row before it and of its
own content; a missing, edited or inserted row breaks the chain. The chain is not keyed: whoever may
write the file and recomputes every hash is not detected by it, unless a head (id, hash) was kept
elsewhere and is given to `verify`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from dp_accounting.dp_event import DpEvent

from privacy import ledger_file
from privacy.ledger_chain import COLUMNS, VerifyReport, row_hash, verify_chain
from privacy.ledger_entry import (
    LedgerEntry,
    composed,
    parse_views,
    require_same_unit,
    view_events,
)
from privacy.ledger_error import LedgerError, LedgerRolledBack
from privacy.ledger_file import Database
from privacy.ledger_heads import EMPTY, GENESIS, Head
from privacy.ledger_tally import PLAN, History, PlanRow, Tally
from privacy.vocabulary import Unit

__all__ = [
    "PLAN",
    "Head",
    "Ledger",
    "LedgerConflict",
    "LedgerEntry",
    "LedgerError",
    "LedgerRolledBack",
    "VerifyReport",
    "composed",
]

_LOOKUP = 1000  # keys in one query, with three parameters each: SQLite allows 32766


class LedgerConflict(LedgerError):
    """The same run, party and key were recorded before with another content."""


class Ledger:
    """An open ledger file. Safe for threads; any number of processes may append to one file."""

    def __init__(
        self, path: str | os.PathLike[str], *, read_only: bool = False, timeout: float = 60.0
    ) -> None:
        """Open a ledger; create it if absent, unless read_only.

        Args:
          path: The SQLite file.
          read_only: Open without creating or writing anything, beside the file neither; what is read
            are the rows that are durable now.
          timeout: Seconds to wait for other writers.

        Raises:
          LedgerError: The file is absent (read_only), foreign, damaged, of another schema version,
            or not accessible. It is left untouched.
        """
        self.path = Path(path)
        self.read_only = read_only
        self._lock = threading.RLock()
        self._tally = Tally()
        self._db: Database | None = ledger_file.open_database(
            self.path, read_only=read_only, timeout=timeout
        )

    def append(self, entry: LedgerEntry, admit: Callable[[], None] | None = None) -> bool:
        """Record one entry; it is durable on disk when this returns.

        Args:
          entry: The release.
          admit: Called before a new row is written, while no other process can write: it may read
            this ledger, and whatever it raises leaves the ledger as it was. A budget is asked here,
            so that no two processes that share a ledger can both take what is left of it. Not
            called for an entry that is there already.

        Returns:
          True for a new row; False when the same run, party, key and content are there already.

        Raises:
          LedgerConflict: The same run, party and key are there with another content.
          LedgerError: The ledger is read-only or cannot be written; nothing was recorded.
        """
        return self.extend([entry], None if admit is None else lambda new: admit()) == 1

    def extend(
        self,
        entries: Iterable[LedgerEntry],
        admit: Callable[[Sequence[LedgerEntry]], None] | None = None,
    ) -> int:
        """Record several entries in one transaction: all of them, or none.

        Args:
          entries: The releases.
          admit: As for `append`; called once, with those that are not there yet, if any.

        Returns:
          The number of new rows.

        Raises:
          LedgerConflict, LedgerError: As `append`.
        """
        if self.read_only:
            raise LedgerError(f"Expected a ledger opened for writing, got read-only {self.path}")
        prepared = [(entry, entry.content()) for entry in entries]
        with self._transaction() as db:
            new = self._not_recorded(db, prepared)
            if not new:
                return 0
            if admit is not None:
                admit([entry for entry, _ in new])
            head = db.execute("SELECT id, hash FROM entries ORDER BY id DESC LIMIT 1").fetchone()
            row_id, previous = head if head else (0, GENESIS)
            time = datetime.now(UTC).isoformat(timespec="microseconds")
            rows = []
            for _, content in new:
                row_id += 1
                digest = row_hash(previous, row_id, time, content)
                rows.append((row_id, time, *content.values(), previous, digest))
                previous = digest
            marks = ",".join("?" * len(rows[0]))
            db.executemany(f"INSERT INTO entries ({COLUMNS}) VALUES ({marks})", rows)
            db.execute("UPDATE head SET id = ?, hash = ?", (row_id, previous))
        return len(rows)

    def _not_recorded(
        self, db: sqlite3.Connection, prepared: Sequence[tuple[LedgerEntry, dict[str, Any]]]
    ) -> list[tuple[LedgerEntry, dict[str, Any]]]:
        """Leave out what is in the ledger, or came before in the same list, with this content."""
        names = [(entry.run, entry.party, entry.key) for entry, _ in prepared]
        known: dict[tuple[str, str, str], Iterable[Any]] = {}
        for start in range(0, len(names), _LOOKUP):
            part = names[start : start + _LOOKUP]
            rows = db.execute(
                f"WITH wanted (run, party, key) AS (VALUES {','.join(['(?,?,?)'] * len(part))}) "
                "SELECT e.run, e.party, e.unit, e.purpose, e.round, e.key, e.views, e.details "
                "FROM wanted AS w CROSS JOIN entries AS e "  # CROSS: each name looked up in the index
                "WHERE e.run = w.run AND e.party = w.party AND e.key = w.key",
                [text for name in part for text in name],
            )
            known |= {(row[0], row[1], row[5]): row for row in rows}
        new = []
        for name, (entry, content) in zip(names, prepared, strict=True):
            if name not in known:
                known[name] = content.values()
                new.append((entry, content))
                continue
            for (field, now), old in zip(content.items(), known[name], strict=True):
                if now != old:
                    raise LedgerConflict(
                        f"Entry {'/'.join(name)} is recorded in {self.path} with {field}={old!r}, "
                        f"now got {field}={now!r}: a key names one release only"
                    )
        return new

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            db = self._open_db()
            try:
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    db.execute("COMMIT")
                    self._require_open().check()
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise LedgerError(f"Cannot write the ledger {self.path}: {error}") from error

    def _require_open(self) -> Database:
        if self._db is None:
            raise LedgerError(f"The ledger {self.path} is closed")
        return self._db

    def _open_db(self) -> sqlite3.Connection:
        return self._require_open().connection

    def _select(
        self,
        columns: str,
        tail: str = "",
        *,
        party: str | None = None,
        unit: Unit | None = None,
        run: str | None = None,
    ) -> list[tuple[Any, ...]]:
        chosen = {"party": party, "unit": None if unit is None else Unit(unit).value, "run": run}
        given = {name: value for name, value in chosen.items() if value is not None}
        where = " AND ".join(f"{name} = :{name}" for name in given)
        query = f"SELECT {columns} FROM entries {'WHERE ' + where if where else ''} {tail}"
        with self._lock:
            try:
                return self._open_db().execute(query, given).fetchall()
            except sqlite3.Error as error:
                raise LedgerError(f"Cannot read the ledger {self.path}: {error}") from error

    def entries(
        self, party: str | None = None, unit: Unit | None = None, run: str | None = None
    ) -> list[LedgerEntry]:
        """Return the releases in order, with id, time and hash, of one party, unit or run, or all.

        Plans are not among them, see `plans`.

        Raises:
          LedgerError: A row cannot be read as an entry.
        """
        rows = self._select(COLUMNS, "ORDER BY id", party=party, unit=unit, run=run)
        return [self._entry(row) for row in rows if row[5] != PLAN]

    def plans(
        self, party: str | None = None, unit: Unit | None = None, run: str | None = None
    ) -> list[LedgerEntry]:
        """Return the rows that hold a run's plan, as `entries` does the releases."""
        rows = self._select(COLUMNS, "ORDER BY id", party=party, unit=unit, run=run)
        return [self._entry(row) for row in rows if row[5] == PLAN]

    def plan_rows(self, party: str) -> list[PlanRow]:
        """Return what `plans(party)` does, as columns, faster."""
        with self._lock:
            return self._fresh_tally().plans(party)

    def began(self, party: str) -> dict[str, int]:
        """Return the id of the first release of each run on a party's data."""
        with self._lock:
            return self._fresh_tally().began(party)

    def _entry(self, row: tuple[Any, ...]) -> LedgerEntry:
        row_id, time, run, party, unit, purpose, round_, key, views, details, _, digest = row
        try:
            return LedgerEntry(
                run=run,
                party=party,
                unit=unit,
                purpose=purpose,
                round=round_,
                key=key,
                views=parse_views(views),
                details=json.loads(details),
                id=row_id,
                time=time,
                hash=digest,
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise LedgerError(f"Row {row_id} of the ledger {self.path}: {error}") from error

    def spent(
        self,
        adversary: str,
        *,
        party: str | None = None,
        unit: Unit | None = None,
        run: str | None = None,
        purpose: str | None = None,
    ) -> Counter[DpEvent]:
        """Return the multiset of events in an adversary's view: `composed(entries(...))`, faster.

        Rows are read once and counted from then on, so that the cost does not grow with them.

        Raises:
          LedgerError: Rows of several units match (they do not compose), or one cannot be read.
        """
        chosen = None if unit is None else Unit(unit).value
        with self._lock:
            rows = list(self._fresh_tally().rows(party, chosen, run, purpose))
        require_same_unit(Unit(kind.unit) for kind, _, _ in rows)
        total: Counter[DpEvent] = Counter()
        for kind, count, row_id in rows:
            try:
                events = view_events(kind.views, adversary)
            except (ValueError, TypeError, AttributeError) as error:
                raise LedgerError(f"Row {row_id} of the ledger {self.path}: {error}") from error
            for event, times in events:
                total[event] += times * count
        return total

    def histories(self) -> dict[str, History]:
        """Return what each party did: equal histories cost the same, against any adversary."""
        with self._lock:
            return self._fresh_tally().histories()

    def _fresh_tally(self) -> Tally:
        try:
            self._tally.refresh(self._open_db())
        except sqlite3.Error as error:
            raise LedgerError(f"Cannot read the ledger {self.path}: {error}") from error
        return self._tally

    def parties(self) -> list[str]:
        """Return the names of the parties that have entries, sorted."""
        return [str(row[0]) for row in self._select("DISTINCT party", "ORDER BY party")]

    def head(self) -> Head:
        """Return how far the ledger went: number and hash of the last row."""
        rows = self._select("id, hash", "ORDER BY id DESC LIMIT 1")
        return Head(int(rows[0][0]), str(rows[0][1])) if rows else EMPTY

    def holds(self, head: Head) -> bool:
        """Whether this ledger, or an earlier state of it, had this head."""
        with self._lock:
            try:
                found = self._open_db().execute(
                    "SELECT hash FROM entries WHERE id = ?", (head.rows,)
                )
                return head == EMPTY or found.fetchone() == (head.hash,)
            except (sqlite3.Error, OverflowError) as error:
                raise LedgerError(f"Cannot read the ledger {self.path}: {error}") from error

    def require_contains(self, head: Head, told_by: str) -> None:
        """Refuse to go on where this ledger lacks a head that was kept elsewhere.

        Args:
          head: What was kept, by whomever; of a ledger that went on since, too.
          told_by: Who kept it, for the message.

        Raises:
          LedgerRolledBack: The ledger lacks it: an older file was put in its place, or another copy of it
            went on somewhere else.
        """
        if not self.holds(head):
            raise LedgerRolledBack(
                f"The ledger {self.path} was rolled back, replaced or forked: it has {self.head().rows} rows, and "
                f"not row {head.rows} as {told_by} knows it (head {head})"
            )

    def verify(self, kept_head: tuple[int, str] | None = None) -> VerifyReport:
        """Recompute the whole chain.

        Args:
          kept_head: A head that was kept elsewhere: it must still be in the ledger.

        Returns:
          The report; a problem is reported, never raised.
        """
        with self._lock:
            return verify_chain(self._open_db(), kept_head)

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def __enter__(self) -> Ledger:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()
