"""Views of a silo's releases: the event that each adversary sees, for the ledger's rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dp_accounting.dp_event import ComposedDpEvent, DpEvent, SelfComposedDpEvent

from fedllm.budget.local_policy import LimitRefused
from fedllm.training.sum_share.mechanism import SumShare, with_shares
from privacy.events.constructors import no_guarantee
from privacy.events.views import views_of_sum, with_colluders

SILOS, DIMENSION = "sum_silos", "sum_dimension"
"""Names of a row's details: how many silos are in a sum, and how many numbers an update has."""


def one_event(events: Mapping[DpEvent, int]) -> DpEvent:
    """Return a multiset of events as one."""
    parts: list[DpEvent] = [
        event if count == 1 else SelfComposedDpEvent(event, count)
        for event, count in events.items()
    ]
    return parts[0] if len(parts) == 1 else ComposedDpEvent(parts)


def row_views(
    events: Mapping[DpEvent, int], noise_by: str, colluding: Iterable[int], mechanism: object
) -> dict[str, DpEvent]:
    """Return the views of a release with a guarantee, or of a plan's purpose.

    Args:
        events: of the release; those of sums as the adversary that the noise is calibrated against sees them.
        noise_by: of ``[privacy]``.
        colluding: numbers of colluding silos to state views for.
        mechanism: of the silo in the run.
    """
    event = one_event(events)
    if noise_by == "server":
        seen = no_guarantee("privacy.noise_by=server: the server sees each update without noise")
        return with_colluders(seen, colluding) | {"outsider": event}
    if not isinstance(mechanism, SumShare) or not any(
        with_shares(part, 1) != part for part in events
    ):
        # The silo's own noise protects what it sends: whoever colludes knows nothing of it.
        return with_colluders(event, colluding)
    return views_of_sum(
        lambda shares: one_event({with_shares(e, shares): n for e, n in events.items()}),
        mechanism.silos,
        mechanism.dropouts,
        sorted({*colluding, *([mechanism.colluding] if mechanism.colluding else [])}),
    )


@dataclass(frozen=True)
class SumTerms:
    """Terms that the silos of a run agree on before its first sum, for the whole run.

    Attributes:
        silos: number of silos.
        dimension: numbers of an update, or of a code.
        noise_multiplier: common to all.
    """

    silos: int
    dimension: int
    noise_multiplier: float

    @classmethod
    def of_details(cls, details: Mapping[str, object]) -> SumTerms | None:
        """Return the terms in a plan row's details; None where the plan is of no sum."""
        if details.get(SILOS) is None:
            return None
        numbers = [float(str(details[key])) for key in (SILOS, DIMENSION, "noise_multiplier")]
        return cls(int(numbers[0]), int(numbers[1]), numbers[2])

    def details(self) -> dict[str, str | float | None]:
        """Return what a row tells of the terms, beside the noise multiplier."""
        return {SILOS: self.silos, DIMENSION: self.dimension}

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
        if stored is not None and stored != self:
            raise LimitRefused(
                f"Expected the terms that the run began with ({stored.text()}), got {self.text()}"
            )

    def text(self) -> str:
        """Return the terms in words."""
        return (
            f"{self.silos} silos, {self.dimension} numbers in an update, noise multiplier "
            f"{self.noise_multiplier!r}"
        )


def summed(mechanism: object) -> SumShare:
    """Return a silo's mechanism in a sum; ValueError if it is of no sum."""
    if not isinstance(mechanism, SumShare):
        raise ValueError(f"Expected privacy.noise_by=sum for a sum over silos, got {mechanism}")
    return mechanism
