"""Guard every new row: verify the ledger's hash chain and compare the heads kept outside its file.

Every row that this process counts has been verified: its hash, that it follows the row before, and that its event
can be read (:class:`privacy.ledger.tally.Tally` does both in one pass). Before a row is added, the rows that came
since are verified, and the heads are asked. Where the file was written to by others, it is also read afresh as a
whole, by a connection that holds nothing of it: always if no row came of it (an edit, other bytes), else once
the rows have grown by an eighth, so that many processes on one ledger pay a constant share a row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

from privacy.ledger.adoption import Adoption, adoption_entry
from privacy.ledger.entry import LedgerEntry
from privacy.ledger.error import LedgerError, LedgerRolledBack
from privacy.ledger.hash_chain import VerifyReport
from privacy.ledger.heads import EMPTY, Head, HeadFile, head_beside
from privacy.ledger.storage import Database, is_earlier
from privacy.ledger.tally import Tally, had, lost_in

_SHARE, _LEAST = 8, 64  # of the rows: how many more of them until all are read afresh


class Guard:
    """Holds one open ledger against its heads and its own chain."""

    def __init__(self, path: Path, kept: Sequence[Path]) -> None:
        """Name the ledger and the heads' files that are kept elsewhere, in addition to the one next to it."""
        self.path = path
        self.kept = tuple(kept)
        self.heads = (HeadFile(head_beside(path)), *map(HeadFile, self.kept))
        self._heads: list[tuple[HeadFile, Head | str]] = []
        self._seen: tuple[int, ...] = ()
        self._rows_seen = 0
        self._rows_afresh = 0

    # -- heads -----------------------------------------------------------------------------------

    def before_creation(self) -> None:
        """Refuse to create a ledger if a head records rows of one.

        Raises:
          LedgerRolledBack: One does.
          LedgerError: One cannot be read.
        """
        for file in self.heads:
            head = file.read() or EMPTY
            if head.rows:
                raise LedgerRolledBack(
                    f"The ledger {self.path} is missing: it was deleted or moved, {file.path} records "
                    f"{head.rows} rows of it. {self.remedy()}"
                )

    def is_new(self) -> bool:
        """Return True if no head records a row or is unreadable."""
        try:
            self.before_creation()
        except LedgerError:
            return False
        return True

    def look(self) -> None:
        """Read the heads; to be done before the rows are, which are never behind them."""
        self._heads = []
        for file in self.heads:
            try:
                head = file.read()
            except LedgerError as error:
                self._heads.append((file, str(error)))
            else:
                self._heads.append((file, head or f"its head {file.path} is missing"))

    def problem(
        self, rows: int, holds: Callable[[Head], bool]
    ) -> tuple[str, frozenset[Head]] | None:
        """Return what the heads tell against the ledger, with those that it lacks; None if they agree.

        Args:
          rows: Of the ledger.
          holds: Whether it had a head.
        """
        lost = {
            file.path: head
            for file, head in self._heads
            if isinstance(head, Head) and not holds(head)
        }
        if lost:
            path, head = max(lost.items(), key=lambda item: item[1])
            return (
                f"it has {rows} rows, and {path} records a row {head.rows} that it lacks: it was rolled back, "
                "replaced or forked, and what was released since would be forgotten",
                frozenset(lost.values()),
            )
        missing = [told for _, told in self._heads if not isinstance(told, Head)]
        if missing and rows:
            return (
                f"{missing[0]}: it is a copy, or was restored or moved without it, and rows that were added "
                "elsewhere may not be in it",
                frozenset(),
            )
        return None

    def require_heads(self, tally: Tally, db: sqlite3.Connection) -> None:
        """Raise LedgerRolledBack if a head is missing, or records a row that the ledger lacks."""
        self.look()
        last = tally.head
        found = self.problem(last.rows, lambda head: head == last or tally.holds(db, head))
        if found is not None:
            raise LedgerRolledBack(f"The ledger {self.path}: {found[0]}. {self.remedy()}")

    def begin(self, tally: Tally, database: Database) -> None:
        """Ask the heads when a ledger is opened for writing; make them where they belong to be made.

        They are made, durably, before the first row is, so that no crash leaves rows without a head; and
        for a ledger of an earlier version, which had none.

        Raises:
          LedgerRolledBack, LedgerError: The heads do not agree with it.
        """
        # Heads are created only for an empty ledger or one of the version without heads. For any
        # other ledger a missing head means that the file was copied, moved or restored.
        earlier = database.earlier
        if earlier or not tally.head.rows:
            for file in self.heads:
                file.create(tally.head)
        self.require_heads(tally, database.connection)
        if earlier:
            database.bring_up()

    def adoption(self, tally: Tally, database: Database, adoption: Adoption) -> LedgerEntry:
        """Return the row that records an adoption; the heads follow with :meth:`adopted`.

        Raises:
          ValueError: There is nothing to adopt.
        """
        if database.earlier:
            database.bring_up()

        def holds(head: Head) -> bool:
            return tally.holds(database.connection, head)

        self.look()
        found = self.problem(tally.head.rows, holds)
        if found is None and all(map(holds, adoption.lost)):
            raise ValueError(
                f"Expected a ledger that needs to be adopted, got {self.path}: it is whole, and its heads agree"
            )
        told, lost = found or ("a head that was given is not in it", frozenset())
        return adoption_entry(adoption, tally.head, told, lost)

    def adopted(self, head: Head) -> None:
        """Set the heads to an adopted ledger."""
        for file in self.heads:
            file.replace(head)

    def broken(self, problem: object) -> LedgerError:
        """Return the refusal of a ledger whose chain is broken, or whose file is damaged."""
        return LedgerError(
            f"The ledger {self.path} cannot be trusted: {problem}. {self.remedy('without its rows')}"
        )

    def verified(self, found: VerifyReport, db: sqlite3.Connection) -> VerifyReport:
        """Add to a verification what the heads tell, as they were at the last look."""
        try:
            earlier = is_earlier(db)
            lost = lost_in(db)
            told = self.problem(found.rows, lambda head: head in lost or had(db, head))
        except (sqlite3.Error, ValueError):
            return found  # the chain itself is broken, and told so
        if told is None:
            return found
        if told[1]:
            return replace(found, ok=False, problems=[*found.problems, told[0]])
        if earlier:  # its version kept no heads: none is missing
            return found
        return replace(found, notes=[*found.notes, told[0]])

    def remedy(self, without: str = "without it", head: Head | None = None) -> str:
        """Return the remedy for a refused ledger, with its command."""
        options = "".join(f" --kept {quote(str(path))}" for path in self.kept)
        options += f" --head {head}" if head is not None else ""
        return (
            f"Restore the file that was used last. To continue {without} is a decision that a ledger records"
            f"{', once this file was moved away' if without != 'without it' else ''}: "
            f'fedllm ledger adopt {quote(str(self.path))}{options} --because "why"'
        )

    # -- chain -----------------------------------------------------------------------------------

    def opened(self, tally: Tally, database: Database) -> None:
        """Note a ledger that was verified as a whole when it was opened."""
        self._rows_afresh = self._rows_seen = tally.head.rows
        self._seen = database.signature()

    def before_rows(self, tally: Tally, database: Database) -> None:
        """Verify what came since; within the transaction that is to add rows.

        Raises:
          LedgerError: The file or its chain is damaged, or not the one that was read before.
          LedgerRolledBack: As :meth:`require_heads`.
        """
        tally.refresh(database.connection)
        rows = tally.head.rows
        if database.signature() != self._seen and (
            rows == self._rows_seen
            or rows - self._rows_afresh >= max(_LEAST, self._rows_afresh // _SHARE)
        ):
            with database.afresh() as db:
                Tally().refresh(db)
            self._rows_afresh = rows
        self.require_heads(tally, database.connection)

    def after_rows(self, tally: Tally, database: Database) -> None:
        """Advance the heads to durable rows; the transaction is over.

        Raises:
          LedgerError: A head cannot be written: the rows are there, and nothing may be released.
        """
        tally.refresh(database.connection)
        for file in self.heads:
            file.advance(tally.head)
        self._seen, self._rows_seen = database.signature(), tally.head.rows
