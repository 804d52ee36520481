"""Lower bound on the cost of a vector with independent noise on each entry: changes that are spread equally.

A record may change m of the entries by 1 / sqrt(m) each. What that costs is computed exactly, by
composition over the m entries, then sampled, then composed over the steps. The worst change of L2 norm 1
costs at least as much, so noise that fails here fails; noise that passes has no guarantee by that.
Compare `accountants.vector_loss`, which has guarantees.
"""

from __future__ import annotations

import math

import numpy as np

from privacy.accountants.losses.distribution import LossDistribution, compose
from privacy.accountants.losses.scalar import scalar_losses, scalar_spread
from privacy.mechanisms.scalar_noise import ScalarNoise

MOST_ENTRIES = (
    4096  # over which a change is spread: more change little, and cost time and round-off
)
_CELLS = 30  # in a standard deviation of a loss
_FEW = 16
_MOST_CELLS = 400_000


def splits(dimension: int) -> tuple[int, ...]:
    """Return the numbers of entries over which changes are spread: one, and all (at most 4096)."""
    return tuple(sorted({1, min(dimension, MOST_ENTRIES)}))


def spread_losses(
    noise: ScalarNoise, entries: int, rate: float, steps: int, resolution: float
) -> tuple[LossDistribution, ...]:
    """Return the loss of all steps of a change by 1 / sqrt(entries) in as many entries.

    Args:
      noise: The noise of each entry, in units of the bound on the change's L2 norm.
      entries: Over how many the change is spread, >= 1.
      rate: Sampling rate of each step, 0 < rate <= 1.
      steps: How many.
      resolution: The largest interval between two losses: a small share of the epsilon that is looked at.

    Returns:
      (remove, add), or one distribution where both are the same: the change's own loss, its epsilon
      within 0.5 %.
    """
    shift = 1 / math.sqrt(entries)
    spread, reach = scalar_spread(noise, 1.0, shift)
    # The largest loss of few entries is the sum of theirs, and so is its rounding.
    interval = min(spread / _CELLS, resolution / min(entries, _FEW))
    interval = max(interval, min(reach, 100.0) / _MOST_CELLS)
    (one,) = scalar_losses(noise, 1.0, shift, interval)
    vector = _composed(one, entries)
    parts = (vector,) if rate == 1 else _sampled(vector, rate, resolution)
    return tuple(_composed(part, steps) for part in parts)


def _composed(part: LossDistribution, count: int) -> LossDistribution:
    found = compose([(part, count)])
    assert found is not None  # no limit of size was given
    return found


def _sampled(
    loss: LossDistribution, rate: float, resolution: float
) -> tuple[LossDistribution, LossDistribution]:
    """Return both directions of a symmetric pair (the loss of Q against P is that of P against Q), sampled.

    The mass of Q at a loss is then the mass of P at minus that loss: taken from there, since exp(-loss)
    would magnify round-off.
    """
    reach = max(abs(loss.start), abs(loss.start + loss.probs.size - 1))
    first = np.zeros(2 * reach + 1)
    first[loss.start + reach : loss.start + reach + loss.probs.size] = np.maximum(loss.probs, 0.0)
    second = first[::-1]
    losses = np.arange(-reach, reach + 1) * loss.interval
    with np.errstate(over="ignore"):
        small = np.log1p(rate * np.expm1(np.minimum(losses, 1.0)))
        large = np.logaddexp(math.log1p(-rate), math.log(rate) + losses)
    mixed = np.where(losses > 1.0, large, small)
    mixture = (1 - rate) * second + rate * first
    spread = math.sqrt(float(mixture @ mixed**2))
    interval = min(spread / _CELLS, resolution)
    interval = max(interval, float(mixed[-1] - mixed[0]) / _MOST_CELLS)
    remove = _on_grid(mixed, mixture, interval, rate * loss.infinity)
    # Where P alone is, Q has nothing; where Q alone is, its loss is that of no P at all.
    add = _on_grid(
        np.append(-mixed, -math.log1p(-rate)), np.append(second, loss.infinity), interval, 0.0
    )
    return remove, add


def _on_grid(
    losses: np.ndarray, masses: np.ndarray, interval: float, infinity: float
) -> LossDistribution:
    """Return each mass on the two multiples of the interval around its loss, both members' masses kept."""
    below = np.floor(losses / interval)
    upper = masses * -np.expm1(below * interval - losses) / -math.expm1(-interval)
    index = below.astype(np.int64)
    first = int(index.min())
    size = int(index.max()) - first + 2
    probs = np.bincount(index - first, masses - upper, size).astype(np.float64)
    probs += np.bincount(index - first + 1, upper, size)
    return LossDistribution(interval, first, probs, infinity, error=0.0)
