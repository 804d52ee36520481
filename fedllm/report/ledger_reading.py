"""Reading a ledger that may be missing, damaged, or still written to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent

from privacy.events.multiset import is_private
from privacy.guarantee import OUTSIDER, SERVER
from privacy.ledger.ledger import Ledger, LedgerEntry, LedgerError, VerifyReport, composed


def read_ledger(
    path: Path, kept_head: tuple[int, str] | None = None
) -> tuple[list[LedgerEntry], VerifyReport | None, str | None]:
    """Return all rows of a ledger up to the head that was verified, the verification, and what is wrong.

    Args:
        kept_head: a head (id, hash) that must still be in the ledger.

    Returns:
        (rows, verification, None); or ([], the verification or None, why it cannot be read).
    """
    if not path.exists():
        return [], None, "the ledger is missing"
    verification = None
    try:
        with Ledger(path, read_only=True) as ledger:
            found = ledger.verify(kept_head)
            problems = [_one_line(problem) for problem in found.problems]
            notes = [_one_line(note).replace(f"{path.parent}/", "") for note in found.notes]
            verification = replace(found, problems=problems, notes=notes)
            rows = ledger.entries()
    except (LedgerError, OSError) as error:
        return [], verification, _one_line(f"the ledger cannot be read: {error}")
    last = verification.head[0]  # a run that continues may have written more since
    return [row for row in rows if not verification.ok or (row.id or 0) <= last], verification, None


def mechanisms_by_rate(rows: Iterable[LedgerEntry]) -> Counter[tuple[DpEvent, float]]:
    """Count the uses of each mechanism, by event without its sampling and by sampling rate: as the server sees it, or
    the outsider if the server sees the values without noise."""
    found: Counter[tuple[DpEvent, float]] = Counter()
    for row in rows:
        events = composed([row], SERVER)
        if not all(map(is_private, events)):
            events = composed([row], OUTSIDER)
        for event, count in events.items():
            rate, inner = 1.0, event
            if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):
                rate, inner = event.sampling_probability, dp.GaussianDpEvent(event.noise_multiplier)
            if isinstance(event, dp.PoissonSampledDpEvent):
                rate, inner = float(event.sampling_probability), event.event
            found[inner, rate] += count
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())
