"""Adaptive clipping: a noisy count of the norms beside each clipped sum, and the norm of the next round.

Where the silos add the noise, each releases its noisy counts of the round with its update; where the server does,
it counts the silos' bits itself. The server moves the norm by the mean share (:mod:`privacy.mechanisms.adaptive_clipping`),
and sends the norm with the next round's tasks. All of a round, in all silos, is clipped to one norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dp_accounting.dp_event import DpEvent

from fedllm.settings.experiment import Settings
from fedllm.training.noise import Noise
from privacy.events.constructors import gaussian
from privacy.mechanisms.adaptive_clipping import (
    LARGEST,
    SMALLEST,
    Split,
    moved_clip,
    noisy_count,
    split,
)
from privacy.randomness import RandomSource


@dataclass(frozen=True)
class SumNoise:
    """The noise of a clipped sum and, with adaptive clipping, of the count of the same records.

    Both together are one mechanism of the noise multiplier that the round is calibrated to.

    Attributes:
        vector: of the sum.
        count: noise multiplier of the count; None where none is released.
    """

    vector: Noise
    count: float | None = None

    @classmethod
    def of(cls, settings: Settings, noise_multiplier: float) -> SumNoise:
        """Return the share ``noise_multiplier`` out to sum and count as the settings ask for.

        Raises:
            ValueError: as :meth:`Noise.of`, or no such noise multiplier.
        """
        if settings.clipping.form != "adaptive":
            return cls(Noise.of(settings, noise_multiplier))
        parts = Split(0.0, 0.0)  # 0: the server adds the noise, or nobody trains
        if noise_multiplier != 0:
            parts = split(noise_multiplier, settings.clipping.count_share)
        return cls(Noise.of(settings, parts.vector), parts.count)

    def events(self) -> tuple[DpEvent, ...]:
        """Return the events of one clipped sum, with the count of the same records where there is one."""
        sums = self.vector.event()
        return (sums,) if self.count is None else (sums, gaussian(self.count))

    def add_to_count(self, count: float, rng: RandomSource) -> float:
        """Return a centred count with its noise.

        Raises:
            ValueError: no count is released, or without noise.
        """
        return noisy_count(count, self.count or 0.0, rng)

    def at_clip(self, own: float, clip: float | None) -> float:
        """Return the clipping norm of a round.

        Args:
            own: ``privacy.clip``.
            clip: as it came with the task; None for ``own``.

        Raises:
            ValueError: a norm is missing or out of range, or comes although the norm is fixed.
        """
        if self.count is None:
            if clip is not None:
                raise ValueError(
                    f"Expected no clipping norm with the task for clipping.form=fixed, got {clip}"
                )
            return own
        if clip is None or not SMALLEST <= clip <= LARGEST:
            raise ValueError(
                f"Expected a clipping norm from {SMALLEST:g} to {LARGEST:g} with the task for "
                f"clipping.form=adaptive, got {clip}"
            )
        return clip


def bounded_share(share: float) -> float:
    """Return a noisy share, or a hostile silo's, cut to [0, 1]: no silo moves the mean of n by more than 1/n.

    A share near 0 or 1 that its noise carries outside is moved inwards, on average by less than half of its noise's
    standard deviation.
    """
    return min(1.0, max(0.0, share))


def next_clip(
    clip: float, shares: Sequence[float], *, quantile: float, learning_rate: float
) -> tuple[float, dict[str, float]]:
    """Return the clipping norm after a round with ``clip``, and the metrics for the round's record.

    Args:
        shares: noisy share of norms at most ``clip``, of each release that arrived; none leaves it.
        quantile, learning_rate: of ``[clipping]``.
    """
    if not shares:
        return clip, {"clip": clip}
    below = math.fsum(map(bounded_share, shares)) / len(shares)
    moved = moved_clip(clip, below, quantile, learning_rate)
    return moved, {"clip": clip, "below_clip": below}
