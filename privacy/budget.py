"""The budget: says before a step whether it may be taken. No slack, and nothing after the fact."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping

from dp_accounting.dp_event import DpEvent

from privacy.accountants import make_accountant
from privacy.event_counts import multiset
from privacy.vocabulary import Adversary, Guarantee, Relation, Unit

_KEPT_SCHEDULES = 4096


class BudgetExceeded(Exception):
    """A step that would exceed the budget; it must not be taken.

    Attributes:
      epsilon: What would have been spent.
      target: The budget's epsilon.
    """

    def __init__(self, message: str, epsilon: float, target: float) -> None:
        """Keep the numbers beside the message."""
        super().__init__(message)
        self.epsilon = epsilon
        self.target = target


class Budget:
    """An (epsilon, delta) that one party's ledger must keep to. Holds no spend of its own.

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
        self._lock = threading.Lock()
        self._verified: list[Counter[DpEvent]] = []

    def cost(self, events: Mapping[DpEvent, int]) -> float:
        """Return epsilon of the events at this budget's delta."""
        return self.accountant.epsilon(events, self.delta)

    def admit(
        self,
        spent: Mapping[DpEvent, int],
        new: Mapping[DpEvent, int],
        planned: Mapping[DpEvent, int] | None = None,
    ) -> None:
        """Return if `new` may be spent on top of `spent`; raise otherwise. Records nothing.

        Args:
          spent: All that the ledger holds, in the budget's adversary's view.
          new: What is about to be released.
          planned: The multiset of the whole schedule, everything spent before included, as a
            hint: it is verified once, and then whatever is contained in it is admitted without
            computing, since epsilon only grows with events.

        Raises:
          BudgetExceeded: It would cost more than the budget.
          UnsupportedEvent: The accountant cannot represent an event.
        """
        total = multiset(spent) + multiset(new)
        self.accountant.epsilon(Counter(dict.fromkeys(multiset(new), 1)), 1.0)  # supported?
        if self.epsilon == math.inf:
            return
        if self._contained(total):
            return
        if planned is not None:
            whole = multiset(planned)
            if total <= whole and self.cost(whole) <= self.epsilon:
                self._remember(whole)
                return
        cost = self.cost(total)
        if cost > self.epsilon:
            raise BudgetExceeded(
                f"The step is not taken: it would bring epsilon to {cost:.6g} at delta="
                f"{self.delta:g} against the adversary {self.adversary!s} (relation "
                f"{self.relation.value}, accountant {self.accountant.name}), the budget is "
                f"epsilon={self.epsilon:g}",
                cost,
                self.epsilon,
            )
        self._remember(total)

    def _contained(self, total: Counter[DpEvent]) -> bool:
        with self._lock:
            return any(total <= verified for verified in reversed(self._verified))

    def _remember(self, whole: Counter[DpEvent]) -> None:
        with self._lock:
            self._verified = [v for v in self._verified if not v <= whole]
            self._verified.append(whole)
            del self._verified[:-_KEPT_SCHEDULES]

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
