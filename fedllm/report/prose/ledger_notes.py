"""Notes of a ledger's verification that are not problems: adoptions, and a missing head."""

from __future__ import annotations

from privacy.ledger.ledger import VerifyReport

ADOPTED = (
    "A ledger that was restored, moved, copied or newly created was adopted deliberately (see the notes). "
    "Releases that are missing from it are counted nowhere: the stated epsilon covers the uses in the ledger."
)


def adopted(found: VerifyReport | None, silos: bool = False) -> list[tuple[str, str]]:
    """Return (title, text) of what a report assumes where the ledger was adopted; else nothing.

    Args:
        silos: whether a silo states that its own was.
    """
    if silos:
        return [("Adopted ledger", ADOPTED)]
    return [("Adopted ledger", ADOPTED)] if found is not None and found.adoptions else []


def notes_of(found: VerifyReport | None) -> list[str]:
    """Return the report's notes on its ledger, one sentence each."""
    lines = [] if found is None else [*found.adoptions, *found.notes]
    return [f"{line[:1].upper()}{line[1:]}." for line in lines]
