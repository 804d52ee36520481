"""What several copies of one record cost, for the report: from the events of the silo that spent most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dp_accounting.dp_event import DpEvent

from fedllm.report.guarded import FAILURES
from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.copies import UnknownCopies, events_of_copies
from privacy.guarantee import Relation

NUMBERS = (1, 2, 4)
"""Numbers of copies that are stated; how often a record really occurs is private."""


def copies_cost(
    events: Mapping[DpEvent, int], relation: Relation, delta: float
) -> list[dict[str, Any]]:
    """Epsilon by PLD for each number of copies; null, with why, where nothing is proven."""
    accountant = make_accountant("pld", relation)
    found: list[dict[str, Any]] = []
    for number in NUMBERS:
        try:
            epsilon = accountant.epsilon(events_of_copies(events, number), delta)
        except (UnknownCopies, UnsupportedEvent) as error:
            found.append({"copies": number, "epsilon": None, "note": str(error)})
            continue
        except FAILURES as error:
            note = f"not computed: {type(error).__name__}: {str(error)[:200]}"
            found.append({"copies": number, "epsilon": None, "note": note})
            continue
        note = "no finite number" if math.isinf(epsilon) else ""
        found.append({"copies": number, "epsilon": float(epsilon), "note": note})
    return found
