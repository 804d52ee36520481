"""The ledger: a durable, append-only, hash-chained list of uses of private data.

Write-ahead spending: an entry is appended, and durable, before the noisy value leaves the process
that made it. A crash in between over-counts by one event; none can under-count.

One SQLite file, complete after each append (see `privacy.ledger.storage`). Each row holds the SHA-256 of
the row before it and of its own content; a missing, edited or inserted row breaks the chain, which is
verified before anything is added. The chain is not keyed: whoever may write the file and recomputes
every hash is detected by the heads alone, which are kept outside of it (see `privacy.ledger.heads`).
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from dp_accounting.dp_event import DpEvent

from privacy.guarantee import Unit
from privacy.ledger import storage as ledger_file
from privacy.ledger.adoption import ADOPT, Adoption
from privacy.ledger.entry import (
    LedgerEntry,
    composed,
    require_same_unit,
    view_events,
)
from privacy.ledger.error import LedgerError, LedgerRolledBack
from privacy.ledger.guard import Guard
from privacy.ledger.hash_chain import (
    COLUMNS,
    LedgerConflict,
    VerifyReport,
    insert_rows,
    not_recorded,
    read_entry,
    verify_chain,
)
from privacy.ledger.heads import EMPTY, Head
from privacy.ledger.storage import Database
from privacy.ledger.tally import PLAN, BrokenChain, History, PlanRow, Tally

__all__ = [
    "PLAN",
    "Adoption",
    "Head",
    "Ledger",
    "LedgerConflict",
    "LedgerEntry",
    "LedgerError",
    "LedgerRolledBack",
    "VerifyReport",
    "adopt_ledger",
    "composed",
]


class Ledger:
    """An open ledger file. Safe for threads; any number of processes may append to one file.

    Example:
        >>> with Ledger("runs/first/ledger.sqlite", read_only=True) as ledger:
        ...     ledger.verify().ok, len(ledger.entries())
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        timeout: float = 60.0,
        kept: Sequence[Path] = (),
        adoption: Adoption | None = None,
    ) -> None:
        """Open a ledger; create it if absent, unless read_only.

        Args:
          path: The SQLite file.
          read_only: Open without creating or writing anything, beside the file neither; what is read
            are the rows that are durable now. The heads and the whole chain are for `verify` then.
          timeout: Seconds to wait for other writers.
          kept: Files that hold heads of this ledger elsewhere, beside the one that lies beside it.
          adoption: Go on with a ledger that is refused for its heads, and record why.

        Raises:
          LedgerRolledBack: A head records rows that the ledger lacks, or is missing.
          LedgerError: The file is absent (read_only), foreign, damaged, of another schema version,
            its chain is broken, or it is not accessible. It is left untouched.
          ValueError: There is nothing to adopt.
        """
        self.path = Path(path)
        self.read_only = read_only
        self._lock = threading.RLock()
        self._tally = Tally()
        self._writing = False  # in a transaction, nobody else adds rows: the tally is fresh
        self._guard = Guard(self.path, kept)
        self._guard.look()  # before the rows are: they are never behind
        self._db: Database | None = ledger_file.open_database(
            self.path,
            read_only=read_only,
            timeout=timeout,
            before_creation=self._guard.before_creation if adoption is None else lambda: None,
        )
        if not read_only:
            try:
                self._begin(adoption)
            except BaseException:
                self.close()
                raise

    def _begin(self, adoption: Adoption | None) -> None:
        database = self._require_open()
        self._fresh_tally()
        if adoption is None:
            with self._readable():
                self._guard.begin(self._tally, database)
            self._guard.opened(self._tally, database)
            return
        entry = self._guard.adoption(self._tally, database, adoption)
        with self._transaction(adopting=True) as db:
            insert_rows(db, self._tally.head, [entry.content()])
        self._fresh_tally()
        self._guard.adopted(self.head())
        self._guard.opened(self._tally, database)

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
            new = not_recorded(db, self.path, prepared)
            if not new:
                return 0
            if admit is not None:
                admit([entry for entry, _ in new])
            insert_rows(db, self._tally.head, [content for _, content in new])
        return len(new)

    @contextmanager
    def _transaction(self, adopting: bool = False) -> Iterator[sqlite3.Connection]:
        with self._lock:
            database = self._require_open()
            db = database.connection
            try:
                database.check()
                db.execute("BEGIN IMMEDIATE")
                try:
                    if adopting:
                        self._tally.refresh(db)
                    else:
                        self._guard.before_rows(self._tally, database)
                    self._writing = True
                    yield db
                    db.execute("COMMIT")
                    database.check()
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
                finally:
                    self._writing = False
                if not adopting:
                    self._guard.after_rows(self._tally, database)
            except BrokenChain as error:
                raise self._guard.broken(error) from error
            except (sqlite3.Error, OSError, UnicodeError) as error:
                raise LedgerError(f"Cannot write the ledger {self.path}: {error}") from error

    @contextmanager
    def _readable(self) -> Iterator[sqlite3.Connection]:
        """Give the connection; what cannot be read is a LedgerError that names the file."""
        with self._lock:
            try:
                yield self._open_db()
            except BrokenChain as error:
                raise self._guard.broken(error) from error
            except (sqlite3.Error, OverflowError, OSError, UnicodeError) as error:
                raise LedgerError(f"Cannot read the ledger {self.path}: {error}") from error

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
        with self._readable() as db:
            return db.execute(query, given).fetchall()

    def entries(
        self, party: str | None = None, unit: Unit | None = None, run: str | None = None
    ) -> list[LedgerEntry]:
        """Return the releases in order, with id, time and hash, of one party, unit or run, or all.

        Plans are not among them, see `plans`, nor adoptions, see `verify`.

        Raises:
          LedgerError: A row cannot be read as an entry.
        """
        rows = self._select(COLUMNS, "ORDER BY id", party=party, unit=unit, run=run)
        return [self._entry(row) for row in rows if row[5] not in (PLAN, ADOPT)]

    def plans(
        self, party: str | None = None, unit: Unit | None = None, run: str | None = None
    ) -> list[LedgerEntry]:
        """Return the rows that hold a run's plan, as `entries` does the releases."""
        rows = self._select(COLUMNS, "ORDER BY id", party=party, unit=unit, run=run)
        return [self._entry(row) for row in rows if row[5] == PLAN]

    def adoptions(self) -> list[LedgerEntry]:
        """Return the rows by which somebody went on deliberately with the ledger, as `entries` does."""
        return [self._entry(row) for row in self._select(COLUMNS, "ORDER BY id") if row[5] == ADOPT]

    def plan_rows(self, party: str) -> list[PlanRow]:
        """Return what `plans(party)` does, as columns, faster."""
        with self._lock:
            return self._fresh_tally().plans(party)

    def began(self, party: str) -> dict[str, int]:
        """Return the id of the first release of each run on a party's data."""
        with self._lock:
            return self._fresh_tally().began(party)

    def others(self, party: str, run: str, unit: Unit) -> tuple[int, int]:
        """Return how many rows a party has beside those of a run and unit, and how many kinds of those there are.

        Rows are never changed: while the first number is the same, so are those rows.
        """
        with self._lock:
            tally = self._tally if self._writing else self._fresh_tally()
            return tally.others(party, run, Unit(unit).value)

    def _entry(self, row: tuple[Any, ...]) -> LedgerEntry:
        try:
            return read_entry(row)
        except (ValueError, TypeError, AttributeError) as error:
            raise LedgerError(f"Row {row[0]} of the ledger {self.path}: {error}") from error

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
            tally = self._tally if self._writing else self._fresh_tally()
            rows = tally.rows(party, chosen, run, purpose)
        if chosen is None:
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
        if not self._writing:
            with self._readable() as db:
                self._tally.refresh(db)
        return self._tally

    def parties(self) -> list[str]:
        """Return the names of the parties that have entries, sorted."""
        rows = self._select("DISTINCT party, purpose", "ORDER BY party")
        return list(dict.fromkeys(str(party) for party, purpose in rows if purpose != ADOPT))

    def head(self) -> Head:
        """Return number and hash of the last row."""
        rows = self._select("id, hash", "ORDER BY id DESC LIMIT 1")
        return Head(int(rows[0][0]), str(rows[0][1])) if rows else EMPTY

    def holds(self, head: Head) -> bool:
        """Return True if this ledger, or an earlier state of it, had this head, or a row of it sets it aside."""
        with self._readable() as db:
            return self._fresh_tally().holds(db, head)

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
                f"not row {head.rows} as {told_by} knows it. {self._guard.remedy(head=head)}"
            )

    def verify(self, kept_head: tuple[int, str] | None = None) -> VerifyReport:
        """Recompute the whole chain.

        Args:
          kept_head: A head that was kept elsewhere: it must still be in the ledger.

        Returns:
          The report; a problem is reported, never raised.
        """
        with self._lock:
            db = self._open_db()
            if not self.read_only:
                self._guard.look()
            return self._guard.verified(verify_chain(db, kept_head), db)

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


def adopt_ledger(path: Path, adoption: Adoption, kept: Sequence[Path] = ()) -> Head:
    """Go on with a ledger that is refused for its heads; where it is lost, with an empty one.

    Args:
      path: The ledger.
      adoption: Why.
      kept: As of `Ledger`.

    Returns:
      The ledger's head: that of the row which records it.

    Raises:
      LedgerError: The ledger is damaged, or its chain is broken: it cannot be adopted as it is.
      ValueError: There is no ledger and no head of one, or it needs no adoption.
    """
    if not os.path.lexists(path) and Guard(path, kept).is_new():
        raise ValueError(f"Expected a ledger, or a head of one, got neither: {path}")
    with Ledger(path, kept=kept, adoption=adoption) as ledger:
        return ledger.head()
