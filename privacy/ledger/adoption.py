"""Adopt a ledger whose outside head is missing or ahead: continue deliberately, recorded as a row.

Where a ledger was restored from a backup, copied, moved or lost, no one can tell what was released since. To continue
all the same is a decision of the person responsible for the data. It is a row of the ledger (purpose "adopt"): why, and
which heads are set aside. It is no release and costs nothing; it is shown wherever the ledger's history is, and
what it sets aside is not counted by anybody.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dp_accounting.dp_event import NoOpDpEvent

from privacy.guarantee import Unit
from privacy.ledger.entry import LedgerEntry, parse_details
from privacy.ledger.heads import Head

ADOPT = "adopt"
"""The purpose of a row that adopts a ledger: no release, no cost."""
MOST_WORDS = 500
"""Characters of a reason."""


@dataclass(frozen=True)
class Adoption:
    """A decision to continue with a ledger.

    Attributes:
      because: Why, in a few words.
      lost: Heads that the ledger may lack from now on, next to those in the heads' files.
    """

    because: str
    lost: tuple[Head, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no reason."""
        words = self.because.strip()
        if not words or len(words) > MOST_WORDS or not words.isprintable():
            raise ValueError(
                f"Expected a reason of 1 to {MOST_WORDS} printable characters (--because), got {words[:100]!r}"
            )


def adoption_entry(
    adoption: Adoption, after: Head, found: str, lost: Iterable[Head]
) -> LedgerEntry:
    """Return the row that records an adoption.

    Args:
      after: The ledger's own head.
      found: What was wrong.
      lost: All heads that are set aside.
    """
    heads = " ".join(str(head) for head in sorted({*lost, *adoption.lost}))
    return LedgerEntry(
        run=ADOPT,
        party=ADOPT,
        unit=Unit.EXAMPLE,
        purpose=ADOPT,
        round=0,
        key=f"{ADOPT}/{after}",
        views={"server": NoOpDpEvent(), "outsider": NoOpDpEvent()},
        details={"because": adoption.because.strip(), "found": found, "lost": heads},
    )


def lost_heads(details: str) -> frozenset[Head]:
    """Return the heads that a row's details set aside; ValueError where they are not readable."""
    return frozenset(Head.parse(text) for text in str(_read(details)["lost"]).split())


def adoption_sentence(row_id: int, time: str, details: str) -> str:
    """Say of a row what was adopted, for a report."""
    read = _read(details)
    lost = sorted(lost_heads(details))
    told = (
        f"rows up to number {lost[-1].rows} that were known elsewhere may not be in it, and are then not counted"
        if lost
        else "no row beyond was known of"
    )
    return f"the ledger was adopted on {time[:10]} after row {row_id - 1}, because: {read['because']}; {told}"


def _read(details: str) -> dict[str, Any]:
    read = parse_details(details)
    if not {"because", "found", "lost"} <= set(read):
        raise ValueError("Expected because, found and lost in the details of an adoption's row")
    return read
