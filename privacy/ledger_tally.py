"""How often each kind of row is in a ledger, kept up to date by reading only the rows that are new.

A ledger is append-only, so that what was counted up to a row stays true; the hash of that row says
whether it is still the same ledger. Parties with the same history need to be accounted only once.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

History = frozenset[tuple["Kind", int]]
"""What one party did: each kind of row with its number."""


PLAN = "plan"
"""The purpose of a row that holds a run's plan: no release, no cost."""


class Kind(NamedTuple):
    """What rows have in common that count as the same.

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


class Tally:
    """The counts of one ledger's rows, by party and kind."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._forget()

    def _forget(self) -> None:
        self._last, self._hash = 0, ""
        self._counts: dict[str, Counter[Kind]] = {}
        self._first: dict[Kind, int] = {}
        self._plans: dict[str, list[PlanRow]] = {}
        self._began: dict[str, dict[str, int]] = {}

    def refresh(self, db: sqlite3.Connection) -> None:
        """Count the rows that came since; all of them, where the last one counted is not there.

        (That happens when a transaction was rolled back in which this was called.)
        """
        if self._last:
            row = db.execute("SELECT hash FROM entries WHERE id = ?", (self._last,)).fetchone()
            if row is None or row[0] != self._hash:
                self._forget()
        query = (
            "SELECT id, hash, party, unit, run, purpose, views, "
            "CASE purpose WHEN ? THEN details ELSE '' END FROM entries WHERE id > ? ORDER BY id"
        )
        rows = db.execute(query, (PLAN, self._last)).fetchall()
        for row_id, _, party, unit, run, purpose, views, details in rows:
            if purpose == PLAN:
                self._plans.setdefault(party, []).append(PlanRow(row_id, run, unit, details))
            else:
                self._began.setdefault(party, {}).setdefault(run, row_id)
            kind = Kind(unit, run, purpose, views, details)
            self._counts.setdefault(party, Counter())[kind] += 1
            self._first.setdefault(kind, row_id)
        if rows:
            self._last, self._hash = rows[-1][:2]

    def rows(
        self,
        party: str | None = None,
        unit: str | None = None,
        run: str | None = None,
        purpose: str | None = None,
    ) -> Iterator[tuple[Kind, int, int]]:
        """Give (kind, count, id of the first row of this kind): one party's, unit's, run's, purpose's, or all."""
        chosen = self._counts.values() if party is None else [self._counts.get(party, Counter())]
        for counts in chosen:
            for kind, count in counts.items():
                wanted = ((unit, kind.unit), (run, kind.run), (purpose, kind.purpose))
                if all(asked in (None, own) for asked, own in wanted):
                    yield kind, count, self._first[kind]

    def histories(self) -> dict[str, History]:
        """Return the history of each party."""
        return {party: frozenset(counts.items()) for party, counts in self._counts.items()}

    def plans(self, party: str) -> list[PlanRow]:
        """Return a party's plans in order."""
        return list(self._plans.get(party, ()))

    def began(self, party: str) -> dict[str, int]:
        """Return the id of the first release of each run on a party's data."""
        return dict(self._began.get(party, {}))
