"""Check which relation a ledger's rows are proven for, and if a run's rows compose with them.

A row names the relation that its run stated, and since zero-out exists also whether the number of examples
was public. Rows of earlier versions name add-or-remove-one without that: the number of examples was public
by default, and what their events prove for sure is zero-out. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from privacy.guarantee import Adversary, Relation, Unit
from privacy.ledger.ledger import Ledger, LedgerEntry

SIZES = "sizes"
"""Key in a row's details: the value of data.sizes."""
OLDER_ROWS = (
    "Rows of an earlier version in the ledger name the relation add-or-remove-one without saying that the "
    "number of records was secret. It was public by default: what their events prove is zero-out (one record "
    "replaced by an empty one, the number of records being public), with the same numbers"
)


def recorded_relation(row: LedgerEntry) -> Relation | None:
    """Return the relation that a row names; None if it names none that is known."""
    value = row.details.get("relation")
    return Relation(str(value)) if value in set(Relation) else None


def proven_relation(row: LedgerEntry) -> Relation | None:
    """Return the relation that a row's events are proven for: that which it names, but zero-out for add-or-remove-one
    where it does not say that the number of records was private."""
    relation = recorded_relation(row)
    if relation is Relation.ADD_OR_REMOVE_ONE and row.details.get(SIZES) != "private":
        return Relation.ZERO_OUT
    return relation


def composes(row: LedgerEntry, relation: Relation) -> bool:
    """Return True if a row counts under a relation: it is proven for it, or for one that implies it."""
    proven = proven_relation(row)
    return proven is None or proven.implies(relation)


def notes_on(rows: Iterable[LedgerEntry]) -> list[str]:
    """Return notes on the relations that rows name; empty if there are none."""
    older = any(recorded_relation(row) is not proven_relation(row) for row in rows)
    return [OLDER_ROWS] if older else []


def refuse_other_units(ledger: Ledger, party: str, unit: Unit) -> None:
    """Check that the ledger holds nothing of this party for another privacy unit.

    Raises:
        ValueError: it does; units do not compose.
    """
    for other in Unit:
        if other is not unit and ledger.spent(Adversary("server"), party=party, unit=other):
            raise ValueError(
                f"Expected a ledger with privacy.unit={unit.value} only for {party}, {ledger.path} holds "
                f"what was spent for privacy.unit={other.value}: units do not compose"
            )


def refuse_public_sizes(ledger: Ledger, party: str, unit: Unit) -> None:
    """Check that all rows of this party are proven for adding or removing a record.

    Raises:
        ValueError: one was made with a public number of examples.
    """
    asked = Relation.ADD_OR_REMOVE_ONE
    for row in ledger.entries(party=party, unit=unit):
        if not composes(row, asked):
            raise ValueError(
                f"Expected a ledger without public numbers of examples for {asked.value}, {ledger.path} "
                f"holds rows of the run {row.run} that are proven for {proven_relation(row)} alone: use "
                "privacy.relation=zero-out, or another ledger for data that were never used"
            )
