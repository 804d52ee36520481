"""The plans of a ledger as ``fedllm ledger show`` prints them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fedllm.report.accounting import describe_event
from privacy.guarantee import SERVER
from privacy.ledger.ledger import LedgerEntry
from privacy.run_plan import RunPlan
from simulations.output import make_table


def plan_content(row: LedgerEntry) -> dict[str, Any]:
    """Return a plan's row for JSON: of which run and party, the planned events by purpose and adversary, budgets."""
    content = row.content()
    details = dict(row.details)
    kept = {key: content[key] for key in ("run", "party", "unit")}
    views = json.loads(str(details["plan"]))
    plan = {
        purpose: {adversary: json.loads(event) for adversary, event in found.items()}
        for purpose, found in views.items()
    }
    budgets = json.loads(str(details["budgets"]))
    found = {"id": row.id, "time": row.time, **kept, "plan": plan, "budgets": budgets}
    return found | {"hash": row.hash}


def plan_table(rows: Sequence[LedgerEntry]) -> tuple[str, Table]:
    """Return a title, and a row for each plan with what the server may see of it."""
    table = make_table("row", "plan of", "planned against the server", "budgets")
    for row in rows:
        plan = RunPlan.of_details(row.details)
        events = [f"{n} x {describe_event(e)}" for e, n in plan.events(SERVER).items()]
        budgets = [
            f"{b.setting}: epsilon={b.epsilon:g} at delta={b.delta:g}"
            + (f", {b.terms.describe()}" if b.terms is not None else "")
            for b in plan.budgets
        ]
        whose = f"{row.party}, unit {row.unit}, run {row.run}"
        cells = (str(row.id), whose, "\n".join(events) or "nothing", "\n".join(budgets) or "none")
        table.add_row(*map(Text, cells))
    return f"{len(rows)} plans: each was fixed before its run's first release", table
