"""Reading a ledger that may be missing, damaged, or still written to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from privacy.ledger import Ledger, LedgerEntry, LedgerError, VerifyReport


def read_ledger(
    path: Path, kept_head: tuple[int, str] | None = None
) -> tuple[list[LedgerEntry], VerifyReport | None, str | None]:
    """All rows of a ledger up to the head that was verified, the verification, and what is wrong.

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
            verification = replace(found, problems=problems)
            rows = ledger.entries()
    except (LedgerError, OSError) as error:
        return [], verification, _one_line(f"the ledger cannot be read: {error}")
    last = verification.head[0]  # a run that goes on may have written more since
    return [row for row in rows if not verification.ok or (row.id or 0) <= last], verification, None


def _one_line(text: str) -> str:
    return " ".join(text.split())
