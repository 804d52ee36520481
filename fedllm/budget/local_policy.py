"""Local policy of a silo: what it allows, whatever the settings it receives ask for.

The settings of a run come from the server. These bounds come from the silo config, and are asked
next to those of the settings: within the ledger's own transaction, before a row is written and before
anything is computed (:mod:`fedllm.budget.account`).
"""

from __future__ import annotations

from dataclasses import dataclass

from fedllm.budget.limits import Bound, sum_only
from fedllm.settings.experiment import Settings
from privacy.budget import Budget
from privacy.guarantee import SERVER, Relation, Unit


class LimitRefused(ValueError):
    """A silo's own limits do not allow what was asked; nothing was read, recorded or computed.

    The message names setting, limit and what was asked, and may be told to the server.
    """


@dataclass(frozen=True)
class LocalPolicy:
    """A silo's own budget and the bounds on its mechanism.

    Guarantee: with a finite ``epsilon``, all rows that an account with these bounds writes to the
    silo's ledger, together with those that are there already, keep to (epsilon, delta) of ``unit``
    under ``relation`` against ``against``, by an accountant that is a bound.

    Attributes:
        epsilon: over all runs on the silo's ledger; infinite for no budget.
        delta: of that epsilon.
        unit, relation: what it is stated for.
        accountant: name of the accountant that holds it.
        against: "server", who sees every message, or "sum-only", who learns sums over silos alone where a run has
            ``privacy.noise_by = "sum"``: this assumes the protocol and its cryptography.
        colluding: against "sum-only": number of other silos that may collude with the server, at least.
        rounds: rounds of training in one run at most.
        noise_multiplier: the least noise over sensitivity of a release.
        sampling_rate: the largest probability of an example to be in a local step.
        parameter_norm: the largest norm of a tensor from the server over its initial one.
    """

    epsilon: float
    delta: float
    unit: str = "example"
    relation: str = "zero-out"
    accountant: str = "pld"
    against: str = "server"
    colluding: int = 0
    rounds: int = 1000
    noise_multiplier: float = 0.0
    sampling_rate: float = 1.0
    parameter_norm: float = 1e4

    def bound(self) -> Bound:
        """Return the budget as one of the bounds that each release is held against."""
        budget = Budget(
            self.epsilon,
            self.delta,
            Relation(self.relation),
            SERVER if self.against == "server" else sum_only(self.colluding),
            self.accountant,
        )
        scope = "all that the silo ever released"
        return Bound("budget.epsilon of the silo config", scope, budget, False, own=True)

    def check_kind(self, settings: Settings) -> None:
        """Check that the silo's budget can be held for these settings at all.

        Raises:
            LimitRefused: another unit than the budget's, a public number of examples where the
                budget's relation needs a secret one, or noise that the silo does not add itself,
                so that no row of its own ledger would tell what leaves it.
        """
        privacy = settings.privacy
        if Unit(privacy.unit) is not Unit(self.unit):
            raise LimitRefused(
                f"Expected privacy.unit={self.unit} (budget.unit of the silo config), got "
                f"privacy.unit={privacy.unit}"
            )
        if self.relation == "add-or-remove-one" and settings.data.sizes != "private":
            raise LimitRefused(
                "Expected data.sizes=private (budget.relation=add-or-remove-one of the silo config, which "
                f"needs a secret number of examples), got data.sizes={settings.data.sizes}"
            )
        if privacy.noise_by == "server":
            raise LimitRefused(
                "Expected privacy.noise_by=client or sum (what leaves this silo has its noise already, and a row in "
                f"its own ledger), got privacy.noise_by={privacy.noise_by}"
            )
        asked = settings.secure.colluding
        if privacy.noise_by == "sum" and self.against == "sum-only" and asked < self.colluding:
            raise LimitRefused(
                f"Expected secure.colluding >= {self.colluding} (budget.colluding of the silo config), got "
                f"secure.colluding={asked}"
            )

    def check_mechanism(self, sampling_rate: float, noise_multiplier: float, private: bool) -> None:
        """Check that the mechanism as calibrated keeps to the bounds.

        Args:
            private: False without noise, which the budget itself refuses where it is finite.

        Raises:
            LimitRefused: it samples more, or adds less noise.
        """
        if sampling_rate > self.sampling_rate:
            raise LimitRefused(
                f"Expected a sampling rate <= {self.sampling_rate:g} (limits.sampling_rate of the silo "
                f"config), got {sampling_rate:.6g}: lower client.batch_size or client.sampling_rate"
            )
        if private and noise_multiplier < self.noise_multiplier:
            raise LimitRefused(
                f"Expected a noise multiplier >= {self.noise_multiplier:g} (limits.noise_multiplier of the "
                f"silo config), got {noise_multiplier:.6g}: lower privacy.epsilon, client.local_steps or "
                "server.rounds"
            )

    def check_rounds(self, recorded: int) -> None:
        """Check that one more round of training may be recorded in a run.

        Args:
            recorded: rounds of the run in the ledger.

        Raises:
            LimitRefused: there are as many as the silo allows.
        """
        if recorded >= self.rounds:
            raise LimitRefused(
                f"Expected at most {self.rounds} rounds of training in a run (limits.rounds of the silo's own "
                f"file), got one more: the ledger holds {recorded}"
            )

    def check_guarantee(self, without: int) -> None:
        """Refuse what has no guarantee under a finite budget.

        Args:
            without: number of events without a guarantee in what is to be released.

        Raises:
            LimitRefused: there is one.
        """
        if without and self.epsilon < float("inf"):
            raise LimitRefused(
                f"Expected releases with a guarantee (budget.epsilon={self.epsilon:g} of the silo config), "
                f"got {without} without one"
            )
