"""The epsilon of each run's plan, to stand next to the epsilon of what was released so far."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.events.multiset import is_private
from privacy.guarantee import Relation, Unit
from privacy.ledger.ledger import Ledger
from privacy.run_plan import RunPlan

SO_FAR = "released so far; a guarantee only if the stopping point did not depend on the outputs"
"""Meaning of an epsilon of a ledger's releases (:mod:`fedllm.report.held` has the reason)."""
_SHOWN = 3


def plan_epsilons(
    ledger: Ledger,
    party: str,
    *,
    unit: Unit,
    relation: Relation,
    adversary: str,
    delta: float,
    accountant: str = "pld",
) -> dict[str, float | None]:
    """Return the epsilon of each run's plan on a party's data, by run, in the order of the plans.

    Events that have no guarantee on purpose are not planned and not counted. None: the accountant cannot
    account for the plan.

    Raises:
        ValueError: a plan cannot be read.
    """
    planner = make_accountant(accountant, relation)
    found: dict[str, float | None] = {}
    for row in ledger.plan_rows(party):
        if row.unit != unit.value:
            continue
        events = RunPlan.of_details(json.loads(row.details)).events(adversary)
        planned = Counter({event: count for event, count in events.items() if is_private(event)})
        try:
            found[row.run] = float(planner.epsilon(planned, delta))
        except UnsupportedEvent:
            found[row.run] = None
    return found


def plans_text(plans: Mapping[str, float | None]) -> str:
    """Return the plans' epsilons in a few words; empty if there is no plan."""
    from fedllm.report.guarantee import shown

    names = list(plans)[-_SHOWN:]
    text = ", ".join(f"{name}: {shown(plans[name])}" for name in names)
    if len(plans) == 1:
        return f"the run's plan, {text}"
    more = f", {len(plans) - len(names)} earlier ones" if len(plans) > len(names) else ""
    return f"the runs' plans, {text}{more}" if plans else ""
