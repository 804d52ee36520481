"""Adaptive clipping in a run: the settings of a round, its noise, and the norm of the next one.

Where the silos add the noise, each releases its noisy counts of the round with its update; where the server does,
it counts the silos' bits itself. The server moves the norm by the mean share (:mod:`privacy.mechanisms.adaptive_clipping`),
and sends the norm with the next round's tasks. All of a round, in all silos, is clipped to one norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dp_accounting.dp_event import DpEvent

from fedllm.settings.experiment import Settings
from fedllm.training.mechanism import release_event
from privacy.events.constructors import gaussian
from privacy.mechanisms.adaptive_clipping import LARGEST, SMALLEST, Split, moved_clip, split


def is_adaptive(settings: Settings) -> bool:
    """Whether the clipping norm follows the norms."""
    return settings.clipping.form == "adaptive" and settings.privacy.mode == "dp"


def noise_split(settings: Settings, noise_multiplier: float) -> Split:
    """Noise multipliers of a round's sums and counts, of which ``noise_multiplier`` is that of both."""
    if not is_adaptive(settings) or noise_multiplier == 0:
        return Split(noise_multiplier, 0.0)
    return split(noise_multiplier, settings.clipping.count_share)


def release_events(settings: Settings, noise_multiplier: float) -> tuple[DpEvent, ...]:
    """The events of one clipped sum, with the count of the same records where there is one."""
    noise = noise_split(settings, noise_multiplier)
    sums = release_event(settings, noise.vector)
    return (sums, gaussian(noise.count)) if is_adaptive(settings) else (sums,)


def at_clip(settings: Settings, clip: float | None) -> Settings:
    """The settings with a round's clipping norm.

    Args:
        clip: as it came with the task; None for ``privacy.clip``.

    Raises:
        ValueError: a norm is missing or out of range, or comes although the norm is fixed.
    """
    if not is_adaptive(settings):
        if clip is not None:
            raise ValueError(
                f"Expected no clipping norm with the task for clipping.form=fixed, got {clip}"
            )
        return settings
    if clip is None or not SMALLEST <= clip <= LARGEST:
        raise ValueError(
            f"Expected a clipping norm from {SMALLEST:g} to {LARGEST:g} with the task for "
            f"clipping.form=adaptive, got {clip}"
        )
    privacy = settings.privacy.model_copy(update={"clip": clip})
    return settings.model_copy(update={"privacy": privacy})


def bounded_share(share: float) -> float:
    """A noisy share, or a hostile silo's, cut to [0, 1]: no silo moves the mean of n by more than 1/n.

    A share near 0 or 1 that its noise carries outside is moved inwards, on average by less than half of its noise's
    standard deviation.
    """
    return min(1.0, max(0.0, share))


def next_clip(
    settings: Settings, clip: float, shares: Sequence[float]
) -> tuple[float, dict[str, float]]:
    """The clipping norm after a round with ``clip``, and what the round's record tells of it.

    Args:
        shares: noisy share of norms at most ``clip``, of each release that arrived; none leaves it.
    """
    if not is_adaptive(settings):
        return clip, {}
    if not shares:
        return clip, {"clip": clip}
    how = settings.clipping
    below = math.fsum(map(bounded_share, shares)) / len(shares)
    moved = moved_clip(clip, below, how.quantile, how.learning_rate)
    return moved, {"clip": clip, "below_clip": below}
