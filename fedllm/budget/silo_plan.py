"""Plans in a silo's ledger: this run's, those of other runs, and whether they keep to a budget.

The plan of a run is a row of the ledger, written in the transaction of the run's first release. From then on each
release must be within it, whatever a task says of its rounds, and the budgets count it as a whole, also where
the run stops early (:mod:`privacy.plan_filter`).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dp_accounting.dp_event import DpEvent

from fedllm.budget.limits import Bound
from fedllm.budget.sums.terms import SumTerms
from privacy.budget import BudgetExceeded, OutsidePlan
from privacy.events.multiset import is_private
from privacy.guarantee import Adversary, Unit
from privacy.ledger.ledger import PLAN, Ledger, LedgerEntry
from privacy.ledger.storage import LedgerError
from privacy.ledger.tally import PlanRow
from privacy.plan_filter import Terms
from privacy.run_plan import Commitment, RecordedBudget, RunPlan, commitments, outside

KEY = "plan"
"""Key of the plan's row within (run, silo): there is one."""

ATTEMPTS = 100
"""Attempts to propose a plan when another process writes to the ledger meanwhile."""

Multiset = Counter[DpEvent]
T = TypeVar("T")


def private_part(events: Mapping[DpEvent, int]) -> Multiset:
    """Return the events that give a guarantee."""
    return Counter({event: count for event, count in events.items() if is_private(event)})


class StalePlan(Exception):
    """The ledger has changed since a plan was proposed; nothing was recorded."""


@dataclass(frozen=True)
class Proposal:
    """A plan that is not in the ledger yet, and the row that would fix it."""

    plan: RunPlan
    entry: LedgerEntry


class PlanBook:
    """The plans on one silo's data, as one run sees them.

    Args:
        ledger: the silo's open ledger.
        run, party, unit: whose plan "this run's" is.
        adversary: in whose view releases are held against the plan.
    """

    def __init__(
        self, ledger: Ledger, *, run: str, party: str, unit: Unit, adversary: Adversary
    ) -> None:
        self.ledger = ledger
        self.run = run
        self.party = party
        self.unit = unit
        self.adversary = adversary
        self._stored: PlanRow | None = None
        self._plan: RunPlan | None = None
        self._room: tuple[RunPlan, dict[str, Multiset]] | None = None
        self._admitted: tuple[Any, ...] = ()

    def stored_row(self) -> PlanRow | None:
        """Return this run's plan row in the ledger, or None before its first release."""
        if self._stored is None:  # a row never changes
            rows = self.ledger.plan_rows(self.party)
            self._stored = next((row for row in rows if row.run == self.run), None)
        return self._stored

    def stored(self) -> RunPlan | None:
        """Return this run's plan in the ledger."""
        if self._plan is None:  # a row never changes
            row = self.stored_row()
            self._plan = None if row is None else RunPlan.of_details(json.loads(row.details))
        return self._plan

    def stored_noise(self) -> float | None:
        """Return the noise multiplier that the stored plan is for."""
        row = self.stored_row()
        return None if row is None else float(json.loads(row.details)["noise_multiplier"])

    def stored_terms(self) -> SumTerms | None:
        """Return the terms of sums that the stored plan is for; None without."""
        row = self.stored_row()
        return None if row is None else SumTerms.of_details(json.loads(row.details))

    def sequence(
        self, bound: Bound, mine: RunPlan | None = None
    ) -> tuple[list[Multiset], Terms | None]:
        """Return the runs that a budget counts, in the order of admission, and the recorded filter.

        All that other runs planned counts, and what they released without a guarantee. Of this run the
        latter does not (unless the budget is the silo's own): released on purpose, it is in the ledger and makes
        every reported epsilon infinite, and leaves the noise as it is.

        Args:
            mine: this run's plan; added at the end where it is not in the ledger yet.
        """
        adversary = bound.budget.adversary
        own = Counter() if mine is None else private_part(mine.events(adversary))
        if bound.this_run:
            return ([own] if own else []), None
        found = commitments(self.ledger, adversary, self.party, self.unit, but=self.run)
        plans = [
            c.planned if c.run == self.run and not bound.own else c.planned + c.raw for c in found
        ]
        if own and not any(c.run == self.run for c in found):
            plans.append(own)
        return plans, _recorded_terms(found, bound)

    def admit(
        self, bounds: Iterable[Bound], mine: RunPlan, others: tuple[int, int] | None = None
    ) -> None:
        """Ask the budgets for this run's plan.

        The answer is a function of the plan, the budgets, the rows of other runs, and for the silo's own budgets of
        what this run released without a guarantee. While these are the same it is not asked for again.

        Args:
            others: what :meth:`Ledger.others` says now.

        Raises:
            BudgetExceeded: it would exceed one.
        """
        rows, kinds = others or self.ledger.others(self.party, self.run, self.unit)
        bounds = tuple(bounds)
        asked = (bounds, mine, rows, any(bound.own for bound in bounds) and kinds)
        if asked == self._admitted:
            return
        for bound in bounds:
            plans, terms = self.sequence(bound, mine)
            try:
                bound.budget.admit(plans, terms)
            except BudgetExceeded as error:
                raise bound.exceeded(error) from None
        self._admitted = asked

    def proposal(
        self,
        bounds: Iterable[Bound],
        plan: RunPlan,
        details: Mapping[str, str | float | None],
        views: Mapping[str, DpEvent],
    ) -> Proposal:
        """Return the row of a plan: with the budgets that it is asked for under, and each one's filter.

        Args:
            details: what the row tells of the mechanism.
            views: of no release at all.
        """
        found = replace(plan, budgets=self._recorded(bounds, plan))
        entry = LedgerEntry(
            run=self.run,
            party=self.party,
            unit=self.unit,
            purpose=PLAN,
            round=0,
            key=KEY,
            views=views,
            details={**details, **found.details()},
        )
        return Proposal(found, entry)

    def _recorded(self, bounds: Iterable[Bound], plan: RunPlan) -> tuple[RecordedBudget, ...]:
        budgets = []
        for bound in bounds:
            if math.isinf(bound.budget.epsilon):
                continue
            plans, terms = self.sequence(bound, plan)
            if not bound.this_run and terms is None and plans:
                terms = bound.budget.terms(plans[0])
            budgets.append(replace(as_recorded(bound), terms=terms))
        return tuple(budgets)

    def fixed(self, proposal: Proposal | None, bounds: Iterable[Bound]) -> RunPlan:
        """Return the plan that holds for a release: the ledger's, or the one that is recorded with it.

        Raises:
            OutsidePlan: neither is there: the run plans nothing with a guarantee.
            StalePlan: the ledger has another one by now, or what the proposal says of the filters is no longer so.
        """
        stored = self.stored()
        if proposal is None and stored is None:
            raise OutsidePlan(
                f"The release is not made: the run {self.run} plans no release of {self.party} with a guarantee",
                min((bound.budget.epsilon for bound in bounds), default=math.inf),
            )
        if proposal is None and stored is not None:
            return stored
        if proposal is None or stored is not None:
            raise StalePlan
        if self._recorded(bounds, proposal.plan) != proposal.plan.budgets:
            raise StalePlan
        return proposal.plan

    def check_within(
        self, plan: RunPlan, purpose: str, asked: Multiset, bounds: Sequence[Bound] = ()
    ) -> None:
        """Check that the run's releases, including the requested one, are within its plan.

        Raises:
            OutsidePlan: it is not.
        """
        if self._room is None or self._room[0] != plan:
            self._room = plan, plan.purposes(self.adversary)
        planned = self._room[1]
        released = self.ledger.spent(
            self.adversary, party=self.party, unit=self.unit, run=self.run, purpose=purpose
        )
        room = planned.get(purpose, Counter())
        event = outside(room, released + asked)
        if event is None:
            return
        kept = " and ".join(
            f"{b.setting} ({b.scope}) of epsilon={b.budget.epsilon:g} at delta={b.budget.delta:g}"
            for b in bounds
        )
        raise OutsidePlan(
            "The release is not made: it is outside of the run's plan, which was fixed before its first release"
            f"{f' and keeps to {kept}' if kept else ''}. Purpose {purpose}: planned {_counted(room)}; released "
            f"{_counted(private_part(released))}; asked for {_counted(asked)}",
            min((bound.budget.epsilon for bound in bounds), default=math.inf),
        )


def recorded_anew(record: Callable[[], T], ledger: Ledger) -> T:
    """Call ``record``, which proposes a plan and records it, until no other process wrote in between.

    Raises:
        LedgerError: the ledger changed `ATTEMPTS` times. A server that asks for what can never be recorded
            must not keep a silo busy for ever.
    """
    for _ in range(ATTEMPTS):
        with contextlib.suppress(StalePlan):
            return record()
    raise LedgerError(
        f"Expected {ledger.path} to hold still while a run's plan is recorded, it changed {ATTEMPTS} times; "
        "nothing was released"
    )


def as_recorded(bound: Bound) -> RecordedBudget:
    """Return a bound as a plan's row tells of it, without its filter."""
    budget = bound.budget
    return RecordedBudget(
        setting=bound.setting,
        epsilon=budget.epsilon,
        delta=budget.delta,
        relation=budget.relation.value,
        adversary=str(budget.adversary),
        this_run=bound.this_run,
    )


def _recorded_terms(found: Sequence[Commitment], bound: Bound) -> Terms | None:
    """Return the filter that the first plan under the same budget recorded: it is never chosen again."""
    asked = as_recorded(bound)
    for commitment in found:
        for budget in commitment.plan.budgets if commitment.plan is not None else ():
            if budget.terms is not None and budget.same_budget(asked):
                return budget.terms
    return None


def _counted(events: Mapping[DpEvent, int]) -> str:
    return " and ".join(f"{count} of {event!r}" for event, count in events.items()) or "none"
