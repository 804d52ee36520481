"""Rows in a ledger, as runs write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dp_accounting.dp_event import DpEvent

from privacy.events.views import same_for_all
from privacy.ledger.ledger import Ledger, LedgerEntry

ADD = {"relation": "zero-out", "randomness": "os"}


def add_rows(
    path: Path,
    *rows: tuple[str, Any, int],
    unit: str = "example",
    details: Mapping[str, Any] = ADD,
) -> Path:
    """Append ``number`` rows of a party with these views (or with one event for every adversary) for each
    ``(party, views, number)``; the ledger's path."""
    with Ledger(path) as ledger:
        number = len(ledger.entries())
        for party, views, count in rows:
            if isinstance(views, DpEvent):
                views = same_for_all(views)
            for _ in range(count):
                number += 1
                entry = LedgerEntry(
                    "run", party, unit, "train", number, f"key{number}", views, details
                )
                ledger.append(entry)
    return path
