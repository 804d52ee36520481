"""The noise of a silo's training: the least with which what a run plans keeps to the silo's budgets.

Guarantee: none by itself. Calibration chooses the noise; that no step exceeds a budget is asked again before each
one (:mod:`fedllm.budget.account`), with the noise that is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dp_accounting.dp_event import DpEvent

from fedllm.budget.limits import Bound
from fedllm.models.embedded import cache_folder
from fedllm.training.noise import RoundCost
from privacy.accountants import UnsupportedEvent
from privacy.budget import BudgetExceeded
from privacy.calibration import calibrate_noise_multiplier
from privacy.calibration_filter import calibrate_later_plan
from privacy.plan_filter import Terms

Admitted = Callable[[Bound], tuple[list[Counter[DpEvent]], Terms | None]]
"""Other runs that a bound counts, in the order of admission, and the filter that was recorded for it."""

LEAST_LEFT = 0.01
"""Share of a budget that other runs must have left: for less, the noise would drown everything."""


@dataclass(frozen=True)
class TrainingPlan:
    """The training that noise is calibrated for.

    Attributes:
        party: the silo's name, for messages.
        cost: of one round of training.
        rounds: of the whole training, all with this noise; at least 1.
        next to: what else the run plans to release with a guarantee.
    """

    party: str
    cost: RoundCost
    rounds: int
    beside: Counter[DpEvent]

    def noise_multiplier(self, bounds: Iterable[Bound], admitted: Admitted) -> float:
        """Return the noise standard deviation over sensitivity.

        Args:
            bounds: that the run must keep to.
            admitted: what other runs on the same data planned, as a bound counts it, and what was recorded
                of its filter.

        Raises:
            BudgetExceeded: other runs have left no room for this one.
            ValueError: no noise multiplier reaches the target whatever other runs spent.
        """
        finite = [bound for bound in bounds if bound.budget.epsilon < float("inf")]
        return max(self._calibrate(bound, *admitted(bound)) for bound in finite)

    def _calibrate(self, bound: Bound, plans: list[Counter[DpEvent]], terms: Terms | None) -> float:
        """Return the noise multiplier with which the planned run uses up what is left of a budget."""
        budget = bound.budget
        spent = budget.held_epsilon(plans, terms)
        if plans and spent > (1 - LEAST_LEFT) * budget.epsilon:
            message = (
                f"No training: other runs have spent epsilon={spent:.6g} at delta="
                f"{budget.delta:g} (each counted as it was planned), the budget is "
                f"epsilon={budget.epsilon:g}"
            )
            raise bound.exceeded(BudgetExceeded(message, spent, budget.epsilon))
        mechanisms = self.rounds * self.cost.mechanisms
        cache = cache_folder() / "calibration"
        try:
            if plans:
                return calibrate_later_plan(
                    terms=terms or budget.terms(plans[0]),
                    earlier=plans[1:],
                    sampling_rate=self.cost.sampling_rate,
                    steps=mechanisms,
                    relation=budget.relation,
                    other_events=self.beside,
                    noise=self.cost.noise,
                    truncated=self.cost.truncated,  # as for a first plan
                    cache_dir=cache,
                )
            return calibrate_noise_multiplier(
                epsilon=budget.epsilon,
                delta=budget.delta,
                sampling_rate=self.cost.sampling_rate,
                steps=mechanisms,
                relation=budget.relation,
                other_events=self.beside,
                accountant=budget.accountant.name,
                cache_dir=cache,
                noise=self.cost.noise,
                truncated=self.cost.truncated,
            ).noise_multiplier
        except UnsupportedEvent:
            raise
        except ValueError as error:
            if not plans and not bound.own:
                raise ValueError(f"{bound.setting} of the silo {self.party}: {error}") from None
            raise bound.exceeded(BudgetExceeded(str(error), spent, budget.epsilon)) from None
