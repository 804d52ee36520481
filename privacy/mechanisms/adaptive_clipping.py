"""Adaptive clipping: a clipping norm that follows a quantile of the norms (Andrew et al. 2021, arXiv 1905.03871).

Next to the noisy sum of clipped vectors, a noisy count of those at most as long as the clipping norm C is released, and
C moves by

    C <- C exp(-rate (b - quantile)),        b: the noisy share of vectors with norm <= C      (algorithm 1).

Guarantee: each record adds b_i - 1/2 to the count, b_i in {0, 1}, so that adding or removing it, or putting the null
record in its place, changes the count by 1/2 exactly (replacing it by another: by at most 1, twice that). The null
record is not counted: an empty one of norm 0 <= C that was, with + 1/2, could be a change by 1. With noise of standard deviation s_b the count is a Gaussian mechanism of
multiplier 2 s_b, and sum and count of the same records together are one of multiplier z where (their theorem 1)

    1 / z^2 = 1 / z_sum^2 + 1 / (2 s_b)^2.

`split` shares z out: the count gets the share p of 1 / z^2, so z_sum = z / sqrt(1 - p) and 2 s_b = z / sqrt(p). Given
the same z there is always such a pair, where a fixed s_b asks for 2 s_b > z. C itself is a function of released
values, and noise is scaled with it: whatever C is, the guarantee is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from privacy.mechanisms.gaussian import add_gaussian
from privacy.randomness import RandomSource

SENSITIVITY = 0.5
"""Sensitivity of the count to replacing a record by none."""
SMALLEST, LARGEST = 1e-6, 1e6
"""The clipping norm stays between these."""


@dataclass(frozen=True)
class Split:
    """Noise multipliers (standard deviation over sensitivity) of the sum and of its count."""

    vector: float
    count: float


def split(noise_multiplier: float, share: float) -> Split:
    """Return the multipliers of sum and count that are one mechanism of `noise_multiplier` together.

    Args:
      noise_multiplier: Of both together, finite and > 0.
      share: Of 1 / z^2 that the count gets, 0 < share < 1.

    Raises:
      ValueError: An argument is out of range.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(
            f"Expected a finite noise_multiplier > 0, got noise_multiplier={noise_multiplier}"
        )
    if not 0 < share < 1:
        raise ValueError(f"Expected 0 < share < 1, got share={share}")
    return Split(noise_multiplier / math.sqrt(1 - share), noise_multiplier / math.sqrt(share))


def centred_count(norms: torch.Tensor, clip: float) -> float:
    """Return the sum of b_i - 1/2 over the records; one whose norm is no number counts as too long. Private.

    Args:
      norms: [B] before clipping, B may be 0.
      clip: The clipping norm.
    """
    below = int((norms <= clip).sum())
    return below - SENSITIVITY * norms.numel()


def noisy_count(count: float, multiplier: float, rng: RandomSource) -> float:
    """Return a centred count with Gaussian noise of standard deviation multiplier / 2.

    Guarantee: its event is `gaussian(multiplier)`, alone; see the module for what it is next to a sum.

    Raises:
      ValueError: The multiplier is not finite and > 0.
    """
    if not (math.isfinite(multiplier) and multiplier > 0):
        raise ValueError(f"Expected a finite multiplier > 0, got multiplier={multiplier}")
    value = torch.tensor([count], dtype=torch.float64)
    return float(add_gaussian(value, SENSITIVITY, multiplier, rng))


def share_below(count: float, expected: float) -> float:
    """Return the noisy share b of a noisy centred count, beyond 0 or 1 where the noise is large; post-processing.

    Args:
      expected: The expected number of records in the count, > 0, public.
    """
    if not (math.isfinite(expected) and expected > 0):
        raise ValueError(f"Expected a finite number of records > 0, got expected={expected}")
    return SENSITIVITY + count / expected


def moved_clip(clip: float, below: float, quantile: float, rate: float) -> float:
    """Return the next clipping norm; post-processing.

    Args:
      clip: The one that `below` is about.
      below: The noisy share of norms at most `clip`, 0 to 1.
      quantile: Of the norms, that the clipping norm goes to.
      rate: Learning rate of its logarithm.

    Raises:
      ValueError: `below` is no number from 0 to 1.
    """
    if not 0 <= below <= 1:
        raise ValueError(f"Expected 0 <= below <= 1, got below={below}")
    return min(LARGEST, max(SMALLEST, clip * math.exp(-rate * (below - quantile))))
