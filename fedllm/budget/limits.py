"""The bounds that a silo's spending must keep to.

``privacy.epsilon`` bounds what all runs on the silo's ledger spend together, ``privacy.run_epsilon`` what
one run spends. Both are asked before a step, within the ledger's own transaction
(:mod:`fedllm.budget.account`).
"""

from __future__ import annotations

from dataclasses import dataclass

from fedllm.settings.experiment import Settings
from privacy.budget import Budget, BudgetExceeded
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
