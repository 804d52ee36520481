"""Count each kind of row in a ledger, reading only new rows.

A ledger is append-only, so that what was counted up to a row stays true; the hash of that row says
whether it is still the same ledger. No row is counted before it was verified: its own hash, and that it follows the
row before. Parties with the same history need to be accounted only once.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import Any, NamedTuple

from privacy.ledger.adoption import ADOPT, lost_heads
from privacy.ledger.hash_chain import COLUMNS, head_problems, row_problems
from privacy.ledger.heads import EMPTY, Head

History = frozenset[tuple["Kind", int]]
"""History of one party: each kind of row with its number."""


PLAN = "plan"
"""The purpose of a row that holds a run's plan: no release, no cost."""


class BrokenChain(ValueError):
    """A row does not follow the one before, was edited, or is gone; the message says which."""


class Kind(NamedTuple):
    """Common fields of rows that count as equal.

    Attributes:
      unit, run, purpose, views: As in the ledger's columns.
      plan: The details of a run's plan; else empty.
    """

    unit: str
    run: str
    purpose: str
    views: str
    plan: str = ""


class PlanRow(NamedTuple):
    """A run's plan as a row: its id, and its columns."""

    id: int
    run: str
    unit: str
    details: str


def had(db: sqlite3.Connection, head: Head) -> bool:
    """Return True if a ledger, or an earlier state of it, had a head."""
    row = db.execute("SELECT hash FROM entries WHERE id = ?", (head.rows,)).fetchone()
    return head == EMPTY or row == (head.hash,)


def lost_in(db: sqlite3.Connection) -> frozenset[Head]:
    """Return the heads that adoptions in a ledger set aside."""
    rows = db.execute("SELECT details FROM entries WHERE purpose = ?", (ADOPT,))
    return frozenset(head for (details,) in rows for head in lost_heads(details))


class Tally:
    """The counts of one ledger's rows, by party and kind."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.head = EMPTY
        self._lost: set[Head] = set()
        self._counts: dict[str, Counter[Kind]] = {}
        self._first: dict[Kind, int] = {}
        self._plans: dict[str, list[PlanRow]] = {}
        self._began: dict[str, dict[str, int]] = {}
        self._numbers: dict[str, Counter[tuple[str, str]]] = {}

    def refresh(self, db: sqlite3.Connection) -> None:
        """Verify and count the rows that came since.

        Raises:
          BrokenChain: A row that is new cannot be trusted, or the last one that was counted is not there.
        """
        alone = not db.in_transaction
        if alone:
            db.execute("BEGIN")  # one snapshot for all reads
        try:
            last = self.head.rows
            if last:
                row = db.execute("SELECT hash FROM entries WHERE id = ?", (last,)).fetchone()
                if row is None or row[0] != self.head.hash:
                    raise BrokenChain(
                        f"row {last}, which was read before, is {'gone' if row is None else 'another one'}: other "
                        "bytes were put in the file's place"
                    )
            where, given = ("WHERE id > ?", (last,)) if last else ("", ())
            for row in db.execute(f"SELECT {COLUMNS} FROM entries {where} ORDER BY id", given):
                for problem in row_problems(row, self.head.rows + 1, self.head.hash):
                    raise BrokenChain(problem)
                self._count(row)
            for problem in head_problems(db, self.head):
                raise BrokenChain(problem)
        finally:
            if alone:
                db.execute("ROLLBACK")

    def _count(self, row: tuple[Any, ...]) -> None:
        row_id, _, run, party, unit, purpose, _, _, views, details, _, digest = row
        self.head = Head(row_id, digest)
        if purpose == ADOPT:
            self._lost |= lost_heads(details)
            return
        if purpose == PLAN:
            self._plans.setdefault(party, []).append(PlanRow(row_id, run, unit, details))
        else:
            self._began.setdefault(party, {}).setdefault(run, row_id)
        self._numbers.setdefault(party, Counter()).update([(run, unit)])
        kind = Kind(unit, run, purpose, views, details if purpose == PLAN else "")
        self._counts.setdefault(party, Counter())[kind] += 1
        self._first.setdefault(kind, row_id)

    def holds(self, db: sqlite3.Connection, head: Head) -> bool:
        """Return True if the ledger, or an earlier state of it, had a head, or one of its rows sets it aside."""
        return head in self._lost or had(db, head)

    def rows(
        self,
        party: str | None = None,
        unit: str | None = None,
        run: str | None = None,
        purpose: str | None = None,
    ) -> list[tuple[Kind, int, int]]:
        """Return (kind, count, id of the first row of this kind): one party's, unit's, run's, purpose's, or all."""
        chosen = self._counts.values() if party is None else [self._counts.get(party, Counter())]
        found = []
        for counts in chosen:
            for kind, count in counts.items():
                wanted = ((unit, kind.unit), (run, kind.run), (purpose, kind.purpose))
                if all(asked in (None, own) for asked, own in wanted):
                    found.append((kind, count, self._first[kind]))
        return found

    def others(self, party: str, run: str, unit: str) -> tuple[int, int]:
        """Return the number of a party's rows next to those of a run and unit, and that of their kinds."""
        numbers = self._numbers.get(party, Counter())
        kinds = sum(
            kind.run == run and kind.unit == unit for kind in self._counts.get(party, Counter())
        )
        return numbers.total() - numbers[run, unit], kinds

    def histories(self) -> dict[str, History]:
        """Return the history of each party."""
        return {party: frozenset(counts.items()) for party, counts in self._counts.items()}

    def plans(self, party: str) -> list[PlanRow]:
        """Return a party's plans in order."""
        return list(self._plans.get(party, ()))

    def began(self, party: str) -> dict[str, int]:
        """Return the id of the first release of each run on a party's data."""
        return dict(self._began.get(party, {}))
