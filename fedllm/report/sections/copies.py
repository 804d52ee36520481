"""Report section on the cost of several copies of one record, from the events of the silo that spent most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dp_accounting.dp_event import DpEvent
from pydantic import Field

from fedllm.report.accounting import Accounts, SiloAccounting
from fedllm.report.guarantee import Headline
from fedllm.report.guarded import FAILURES
from fedllm.report.record import RunRecord
from fedllm.report.schema_base import Part, Real
from fedllm.report.sections.silo_curves import drawn_adversary, events_of, largest
from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.copies import UnknownCopies, events_of_copies
from privacy.guarantee import Relation, Unit

NUMBERS = (1, 2, 4)
"""Numbers of copies that are stated; how often a record really occurs is private."""


class CopiesCostPart(Part):
    """The PLD cost of one number of copies."""

    copies: int
    epsilon: Real | None = Field(description="Null: nothing is proven; see note.")
    note: str


class CopiesPart(Part):
    """The cost of removing all copies of one record, for the silo with the largest epsilon."""

    silo: str
    adversary: str
    accountant: Literal["pld"]
    costs: list[CopiesCostPart]


def copies_of_a_record(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    statement: Headline,
    unit: Unit,
    accounts: Accounts,
) -> dict[str, Any] | None:
    """Return the cost of copies of one record at the silo with the largest epsilon."""
    adversary = drawn_adversary(statement)
    worst = largest(run, accounted, adversary)
    if worst is None or unit is Unit.CLIENT:
        return None
    events = events_of(run, worst.name, unit, adversary)
    costs = copies_cost(events, accounts.relation, accounts.delta)
    return {"silo": worst.name, "adversary": str(adversary), "accountant": "pld", "costs": costs}


def copies_cost(
    events: Mapping[DpEvent, int], relation: Relation, delta: float
) -> list[dict[str, Any]]:
    """Return epsilon by PLD for each number of copies; null, with why, where nothing is proven."""
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


MARKUP = """\
{% if report.copies %}
<p id="copies">Several copies of one record at silo {{ report.copies.silo }}, all of them together, against the
{{ report.copies.adversary }} (PLD, delta {{ "%g" | format(g.delta) }}, {{ g.relation }}):
{% for cost in report.copies.costs %}{{ cost.copies }} {{ "copy" if cost.copies == 1 else "copies" }}: epsilon {{ "not proven" if cost.epsilon is none else cost.epsilon | epsilon }}{{ "; " if not loop.last else "." }}
{% endfor %}</p>
{% endif %}
"""
