"""Terms of the sums of a run: what its silos agree on before the first one, and keep to the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedllm.budget.local_policy import LimitRefused
from fedllm.training.sum_share.mechanism import SumShare

SILOS, DIMENSION, KEYS = "sum_silos", "sum_dimension", "sum_keys"
"""Names of a row's details: how many silos are in a sum, how many numbers an update has, how the silos' keys are known."""
PINNED, RELAYED = "pinned", "relayed"
"""Values of `KEYS`: keys of the other silos that the silo's own config names, or those that the server passed on."""


@dataclass(frozen=True)
class SumTerms:
    """Terms that the silos of a run agree on before its first sum, for the whole run.

    Attributes:
        silos: number of silos.
        dimension: numbers of an update, or of a code.
        noise_multiplier: common to all.
        pinned: whether this silo's own config names the keys that the others sign with.
    """

    silos: int
    dimension: int
    noise_multiplier: float
    pinned: bool = False

    @classmethod
    def of_details(cls, details: Mapping[str, object]) -> SumTerms | None:
        """Return the terms in a plan row's details; None where the plan is of no sum."""
        if details.get(SILOS) is None:
            return None
        numbers = [float(str(details[key])) for key in (SILOS, DIMENSION, "noise_multiplier")]
        return cls(int(numbers[0]), int(numbers[1]), numbers[2], details.get(KEYS) == PINNED)

    def details(self) -> dict[str, str | float | None]:
        """Return what a row tells of the terms, beside the noise multiplier."""
        return {
            SILOS: self.silos,
            DIMENSION: self.dimension,
            KEYS: PINNED if self.pinned else RELAYED,
        }

    def check(self, own: float, stored: SumTerms | None) -> None:
        """Check that a silo may keep to these terms.

        Args:
            own: the noise multiplier that the silo's own budgets ask for.
            stored: those that the run began with.

        Raises:
            LimitRefused: less noise than that, or other terms than before.
        """
        if not self.noise_multiplier >= own:
            raise LimitRefused(
                f"Expected a common noise multiplier >= {own!r}, which this silo's budget asks for, got "
                f"{self.noise_multiplier!r}"
            )
        if stored is not None and stored.text() != self.text():
            raise LimitRefused(
                f"Expected the terms that the run began with ({stored.text()}), got {self.text()}"
            )

    def text(self) -> str:
        """Return the terms in words."""
        return (
            f"{self.silos} silos, {self.dimension} numbers in an update, noise multiplier "
            f"{self.noise_multiplier!r}"
        )

    def joined(self, mechanism: object) -> SumShare:
        """Return a silo's mechanism under these terms; ValueError if it is of no sum, or there is no room for such a sum."""
        if not isinstance(mechanism, SumShare):
            raise ValueError(f"Expected privacy.noise_by=sum for a sum over silos, got {mechanism}")
        common = replace(mechanism, noise_multiplier=self.noise_multiplier)
        return common.among(self.silos, self.dimension)
