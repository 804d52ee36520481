"""Privacy budget: decide, before a plan's first step, whether the plan may start.

A proven filter over plans (:mod:`privacy.plan_filter`): the first plan by the budget's accountant, later ones, which
may depend on what was released before, by what the first one leaves. No slack, and nothing after the fact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from dp_accounting.dp_event import DpEvent

from privacy.accountants import make_accountant
from privacy.events.multiset import multiset
from privacy.guarantee import Adversary, Guarantee, Relation, Unit
from privacy.plan_filter import Terms, choose, equivalent_epsilon, renyi_terms, used


class BudgetExceeded(Exception):
    """A step that would exceed the budget; it must not be taken.

    Attributes:
      epsilon: What would have been spent.
      target: The budget's epsilon.
    """

    def __init__(self, message: str, epsilon: float, target: float) -> None:
        """Keep the numbers next to the message."""
        super().__init__(message)
        self.epsilon = epsilon
        self.target = target


class OutsidePlan(BudgetExceeded):
    """A release that the run's plan, fixed before its first release, does not hold."""

    def __init__(self, message: str, target: float) -> None:
        """Keep the message and the budget; no epsilon is stated for what is not planned."""
        super().__init__(message, math.inf, target)


class Budget:
    """An (epsilon, delta) that one party's ledger must not exceed. It stores no spending.

    What was spent is read from the ledger by the caller, so that a restart neither resets it nor
    counts it twice.
    """

    def __init__(
        self,
        epsilon: float,
        delta: float,
        relation: Relation = Relation.ZERO_OUT,
        adversary: str = "server",
        accountant: str = "pld",
    ) -> None:
        """Make a budget.

        Args:
          epsilon: > 0; infinite for no limit.
          delta: 0 <= delta < 1.
          relation: The neighbouring relation.
          adversary: Against whom; the caller gives events in this adversary's view.
          accountant: Name of an accountant that is a bound.

        Raises:
          ValueError: A value is out of range, or the accountant is not a bound.
        """
        if math.isnan(epsilon) or epsilon <= 0:
            raise ValueError(f"Expected epsilon > 0, got epsilon={epsilon}")
        if not 0 <= delta < 1:
            raise ValueError(f"Expected 0 <= delta < 1, got delta={delta}")
        self.epsilon = float(epsilon)
        self.delta = float(delta)
        self.relation = Relation(relation)
        self.adversary = Adversary(adversary)
        self.accountant = make_accountant(accountant, self.relation)
        if not self.accountant.is_bound:
            raise ValueError(
                f"Expected an accountant that is a bound for a budget, got accountant={accountant}"
            )

    def cost(self, events: Mapping[DpEvent, int]) -> float:
        """Return epsilon of the events at this budget's delta."""
        return self.accountant.epsilon(events, self.delta)

    def terms(self, first: Mapping[DpEvent, int]) -> Terms | None:
        """Return the budget that the first plan leaves to later ones; None if there is no limit.

        A function of the first plan and of this budget alone, see :mod:`privacy.plan_filter`. A budget whose
        accountant is RDP keeps to Renyi divergences throughout.
        """
        if self.epsilon == math.inf:
            return None
        if self.accountant.name == "rdp":
            renyi = renyi_terms(multiset(first), self.epsilon, self.delta, self.relation)
            if renyi is not None:
                return renyi
        return choose(first, self.epsilon, self.delta, self.relation)

    def admit(self, plans: Sequence[Mapping[DpEvent, int]], terms: Terms | None = None) -> None:
        """Return if all these plans together keep to the budget; raise otherwise. Records nothing.

        The first must have been fixed before anything was released; a later one may have been chosen after
        seeing all that was released before it was admitted.

        Args:
          plans: Multisets in the order of their admission, in the budget's adversary's view; the last is
            asked for.
          terms: What was recorded with the first plan for this budget; else `terms(plans[0])`.

        Raises:
          BudgetExceeded: They would cost more than the budget.
          UnsupportedEvent: The budget's accountant cannot represent an event.
        """
        if not plans:
            return
        self._require_supported(plans)
        if self.epsilon == math.inf:
            return
        cost = self.held_epsilon(plans, terms)
        if cost > self.epsilon:
            raise BudgetExceeded(self._refusal(plans, terms, cost), cost, self.epsilon)

    def held_epsilon(
        self, plans: Sequence[Mapping[DpEvent, int]], terms: Terms | None = None
    ) -> float:
        """Return the epsilon that a filter for just these plans would hold at this budget's delta.

        Of one plan it is what the plan costs. It exceeds `epsilon` exactly where the plans do not fit; read at
        a moment that depends on what was released it is no guarantee, only the budget is.

        Args:
          plans, terms: As for `admit`.
        """
        if not plans:
            return 0.0
        first, later = plans[0], plans[1:]
        alone = self.cost(first)
        if not later or alone > self.epsilon or self.epsilon == math.inf:
            return alone if not later else self.cost(_sum(plans))
        chosen = self.terms(first) if terms is None else terms
        assert chosen is not None  # the budget is finite
        total = used(chosen, later, self.relation)
        if total == 0:
            return alone
        cost = equivalent_epsilon(chosen, first, total, self.delta, self.relation)
        # The limit decides, not the round-off of its conversion.
        if total <= chosen.limit:
            return min(max(cost, alone), self.epsilon)
        return max(cost, math.nextafter(self.epsilon, math.inf))

    def _require_supported(self, plans: Sequence[Mapping[DpEvent, int]]) -> None:
        for plan in plans:
            self.accountant.epsilon(Counter(dict.fromkeys(multiset(plan), 1)), 1.0)

    def _refusal(
        self, plans: Sequence[Mapping[DpEvent, int]], terms: Terms | None, cost: float
    ) -> str:
        by = f"accountant {self.accountant.name}"
        if len(plans) > 1 and self.cost(plans[0]) <= self.epsilon:
            chosen = terms or self.terms(plans[0])
            assert chosen is not None  # the budget is finite
            by = f"over {len(plans)} plans, each of which may depend on those before: {chosen.describe()}"
        return (
            f"The step is not taken: what is planned would bring epsilon to {cost:.6g} at delta="
            f"{self.delta:g} against the adversary {self.adversary!s} (relation "
            f"{self.relation.value}, {by}), the budget is epsilon={self.epsilon:g}"
        )

    def guarantee(self, events: Mapping[DpEvent, int], unit: Unit) -> Guarantee:
        """Return the guarantee of the events at this budget's delta."""
        return Guarantee(
            epsilon=self.cost(events),
            delta=self.delta,
            unit=unit,
            relation=self.relation,
            adversary=self.adversary,
            accountant=self.accountant.name,
            bound=self.accountant.is_bound,
            mu=self.accountant.mu(events),
            note=self.accountant.note(events),
        )


def _sum(plans: Sequence[Mapping[DpEvent, int]]) -> Counter[DpEvent]:
    total: Counter[DpEvent] = Counter()
    for plan in plans:
        total.update(multiset(plan))
    return total
