"""Guarantee of a ledger's plans: for one run its plan, for several the budget that a filter enforced.

Epsilon read at a moment that depends on what was released (an odometer) is no guarantee, and neither is tight
composition of runs if a later one was chosen after an earlier one's output. A plan was fixed before its first release,
so its epsilon holds wherever the run stops. A budget is a guarantee if the plans in the ledger, checked again here,
keep to its filter (:mod:`privacy.plan_filter`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dp_accounting.dp_event import DpEvent

from fedllm.report.accounting import Figure, SiloAccounting
from fedllm.report.guarantee import shown
from privacy.accountants import ACCOUNTANTS, UnsupportedEvent, make_accountant
from privacy.budget import Budget, BudgetExceeded
from privacy.guarantee import SERVER, Adversary, Relation, Unit
from privacy.ledger.ledger import Ledger, LedgerError
from privacy.run_plan import Commitment, RecordedBudget, commitments, outside

FILTER = "filter"
"""The accountant's name of a figure that is a budget which a filter kept."""
PLAN = "plan"
"""The accountant's name of a figure that is the epsilon of a run's whole plan."""


def add_held(
    silos: Sequence[SiloAccounting], ledger: Path, unit: Unit, relation: Relation, delta: float
) -> None:
    """Add the enforced bounds like :func:`add_held_of`, from the file of a verified ledger."""
    with Ledger(ledger, read_only=True) as opened:
        add_held_of(silos, opened, unit, relation, delta)


def add_held_of(
    silos: Sequence[SiloAccounting], ledger: Ledger, unit: Unit, relation: Relation, delta: float
) -> None:
    """Set ``held`` of each silo whose guarantee is not the epsilon of what was released.

    That is one on whose data several runs are in the ledger, or whose one run released less, or more, than its plan.
    """
    for silo in silos:
        for adversary in silo.figures:
            if silo.reasons[adversary]:
                continue
            try:
                found = commitments(ledger, adversary, silo.name, unit)
            except (LedgerError, ValueError):
                continue
            if (runs := sum(c.run.count(", ") + 1 for c in found)) > 1:
                silo.held[adversary] = _held(found, runs, adversary, relation, delta)
            elif runs == 1 and found[0].plan is not None:
                spent = ledger.spent(adversary, party=silo.name, unit=unit)
                headline = silo.headline(adversary)
                planned = held_by_plan(found[0].planned, spent, headline, relation, delta)
                if planned is not None:
                    silo.held[adversary] = planned


def held_by_plan(
    planned: Counter[DpEvent],
    released: Counter[DpEvent],
    headline: Figure,
    relation: Relation,
    delta: float,
) -> Figure | None:
    """Return the figure of one run that released other than its plan; None if it released just that.

    Args:
        headline: the figure of what was released.
    """
    if released == planned or headline.accountant not in ACCOUNTANTS:
        return None
    if outside(planned, released) is not None:
        why = (
            "no budget was set, and more was released than the run had planned (a round that was repeated, for one): "
            "this epsilon holds only if how much was released did not depend on what was released"
        )
        return Figure(PLAN, None, False, note=why)
    epsilon = make_accountant(headline.accountant, relation).epsilon(planned, delta)
    why = (
        f"of the run's plan, which was fixed before its first release, by the {headline.accountant.upper()} accountant; "
        f"less of it was released: epsilon = {shown(headline.epsilon_or_inf)} had that been fixed beforehand"
    )
    return Figure(PLAN, epsilon, headline.bound, note=why)


def _held(
    found: Sequence[Commitment], runs: int, adversary: str, relation: Relation, delta: float
) -> Figure:
    """Return the smallest budget that all plans keep to, of those that the last plan was asked for under."""
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
        and Adversary(budget.adversary).strength
        >= min(SERVER.strength, Adversary(adversary).strength)
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
