"""What holds over several runs on one ledger: the budget that a filter kept, not what was spent so far.

Epsilon read off at a moment that depends on what was released (an odometer) is no guarantee, and so is tight
composition of runs of which a later one was chosen after an earlier one's output. The budget is one where the plans in the ledger,
checked again here, keep to its filter (:mod:`privacy.plan_filter`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dp_accounting.dp_event import DpEvent

from fedllm.report.accounting import Figure, SiloAccounting
from privacy.accountants import UnsupportedEvent
from privacy.budget import Budget, BudgetExceeded
from privacy.ledger import Ledger, LedgerError
from privacy.run_plan import Commitment, RecordedBudget, commitments
from privacy.vocabulary import Adversary, Relation, Unit

FILTER = "filter"
"""The accountant's name of a figure that is a budget which a filter kept."""


def add_held(
    silos: Sequence[SiloAccounting], ledger: Path, unit: Unit, relation: Relation, delta: float
) -> None:
    """Set ``held`` of each silo on whose data several runs are in the ledger.

    Args:
        ledger: one that was verified.
    """
    with Ledger(ledger, read_only=True) as opened:
        for silo in silos:
            for adversary in silo.figures:
                if silo.reasons[adversary]:
                    continue
                try:
                    found = commitments(opened, adversary, silo.name, unit)
                except (LedgerError, ValueError):
                    continue
                if (runs := sum(c.run.count(", ") + 1 for c in found)) > 1:
                    silo.held[adversary] = _held(found, runs, adversary, relation, delta)


def _held(
    found: Sequence[Commitment], runs: int, adversary: str, relation: Relation, delta: float
) -> Figure:
    """The smallest budget that all plans keep to, of those that the last plan was asked for under."""
    old = "; ".join(c.run for c in found if c.plan is None)
    note = f" Runs before plans were kept, which no filter held: {old}." if old else ""
    last = found[-1].plan
    recorded = () if last is None else last.budgets
    plans = [c.planned + c.raw for c in found]
    held = [
        budget
        for budget in recorded
        if not budget.this_run
        and budget.delta <= delta
        and Relation(budget.relation) is relation
        and Adversary(budget.adversary).strength >= min(1, Adversary(adversary).strength)
        and _keeps(budget, plans, adversary, relation)
    ]
    if not held:
        why = (
            f"the ledger holds {runs} runs and no budget that all of them were planned under: this epsilon holds "
            f"only if what they do was fixed before the first of them.{note}"
        )
        return Figure(FILTER, None, False, note=why)
    best = min(held, key=lambda budget: budget.epsilon)
    terms = best.terms
    assert terms is not None  # it keeps
    why = (
        f"the budget that a privacy filter held over the {runs} runs on the ledger, each of which may depend on "
        f"what came before it ({terms.describe()}).{note}"
    )
    return Figure(FILTER, best.epsilon, True, note=why)


def _keeps(
    budget: RecordedBudget,
    plans: Sequence[dict[DpEvent, int]],
    adversary: str,
    relation: Relation,
) -> bool:
    if budget.terms is None:
        return False
    try:
        asked = Budget(budget.epsilon, budget.delta, relation, adversary)
        asked.admit(plans, budget.terms)
    except (BudgetExceeded, UnsupportedEvent, ValueError):
        return False
    return True
