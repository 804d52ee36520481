"""The bounds that a silo's spending must keep to, and what of them its evaluations need.

``privacy.epsilon`` bounds what all runs on the silo's ledger spend together, ``privacy.run_epsilon`` what
one run spends. Both are asked before a step, within the ledger's own transaction
(:mod:`fedllm.budget.account`).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from dp_accounting.dp_event import DpEvent

from fedllm.budget.schedule import planned_evaluation_rounds
from fedllm.settings.experiment import Settings
from privacy.budget import Budget, BudgetExceeded
from privacy.events.constructors import (
    discrete_gaussian,
    dp_sgd,
    gaussian,
    no_guarantee,
)
from privacy.events.multiset import is_private, multiset
from privacy.guarantee import Adversary, Relation

MOST_MECHANISMS = 64
"""Different events of one silo in one run; an honest one has a few."""


@dataclass(frozen=True)
class Bound:
    """One budget of a silo, and what counts against it.

    Attributes:
        setting: name of the setting that gives it.
        scope: what counts, in words.
        this_run: whether this run's events alone count, or those of all runs on the ledger.
        own: whether it is the silo's own (:mod:`fedllm.budget.local_policy`) and not the settings': then everything
            in the ledger counts, what was released without a guarantee included.
    """

    setting: str
    scope: str
    budget: Budget
    this_run: bool
    own: bool = False

    def exceeded(self, error: BudgetExceeded) -> BudgetExceeded:
        """The same refusal, with the name of this budget."""
        message = f"{self.setting} ({self.scope}): {error}"
        return BudgetExceeded(message, error.epsilon, error.target)


def protected_from(settings: Settings) -> Adversary:
    """The strongest of server and outsider that the mechanism protects from."""
    return Adversary("outsider" if settings.privacy.noise_by == "server" else "server")


def bounds_of(settings: Settings) -> tuple[Bound, ...]:
    """The budgets of a silo whose own settings (``Settings.for_silo``) these are."""
    privacy = settings.privacy
    found = (
        ("privacy.epsilon", "all runs on the ledger", privacy.epsilon, False),
        ("privacy.run_epsilon", "this run alone", privacy.run_epsilon, True),
    )
    return tuple(
        Bound(
            setting,
            scope,
            Budget(
                epsilon,
                privacy.delta,
                Relation(privacy.relation),
                protected_from(settings),
                privacy.accountant,
            ),
            this_run,
        )
        for setting, scope, epsilon, this_run in found
        if epsilon is not None
    )


def evaluation_sigma(settings: Settings) -> float:
    """Sigma of the discrete Gaussian noise on each of a silo's two counts (correct, number)."""
    return settings.evaluation.clients_noise * math.sqrt(2)


def evaluation_events(settings: Settings) -> Counter[DpEvent]:
    """The events of one evaluation by a silo; empty where there is none."""
    how = settings.evaluation.clients
    if how == "private" and settings.privacy.mode == "dp":
        # Two numbers, and an example may change each by one: two events.
        return multiset({discrete_gaussian(evaluation_sigma(settings)): 2})
    if how == "off":
        return Counter()
    return multiset({no_guarantee("evaluation.clients=raw: counts sent as they are"): 1})


def statistics_events(settings: Settings, sampling_rate: float) -> Counter[DpEvent]:
    """The events of a silo's statistics before training; empty where the codec asks for none.

    Args:
        sampling_rate: of each example in the batch that the statistics are of (unit example).
    """
    if not settings.codec.asks_silos:
        return Counter()
    if settings.privacy.mode == "none":
        return multiset({no_guarantee("privacy.mode=none: statistics without noise"): 1})
    noise = settings.codec.statistics_noise
    if settings.privacy.unit == "example":
        return multiset({dp_sgd(sampling_rate, noise, 1): 1})
    return multiset({gaussian(noise): 1})


def planned_evaluations(settings: Settings) -> Counter[DpEvent]:
    """All evaluation events of a run that have a guarantee: what calibration leaves room for."""
    rounds = planned_evaluation_rounds(settings)
    events = evaluation_events(settings).items()
    return Counter({event: count * rounds for event, count in events if is_private(event)})


def check_evaluations(settings: Settings, party: str) -> None:
    """Refuse a target that the silo's own evaluations alone exceed, whatever the training's noise.

    Raises:
        ValueError: it does; the message names the settings.
    """
    planned = planned_evaluations(settings)
    for bound in bounds_of(settings) if planned else ():
        cost = bound.budget.cost(planned)
        if cost >= bound.budget.epsilon:
            raise ValueError(
                f"Expected {bound.setting} of the silo {party} to be above what its "
                f"{sum(planned.values())} private evaluations cost alone, epsilon={cost:.6g} at "
                f"delta={bound.budget.delta:g}; got {bound.setting}={bound.budget.epsilon:g} "
                "(raise evaluation.clients_noise or evaluation.every, or set "
                "evaluation.clients=off)"
            )
