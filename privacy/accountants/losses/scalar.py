"""Privacy loss distributions of one number with additive noise of any family, sampled or not.

The pair is f(x - 1) against f(x), f the density of a `ScalarNoise` in units of the sensitivity; why it
dominates is in `scalar_noise.base`. Poisson sampling at rate q makes it (1-q) f(x) + q f(x - 1) against
f(x), and the same exchanged (Zhu, Dong and Wang 2022, arXiv 2106.08567, theorem 11, both directions).

The line is cut into cells in which the loss is monotone, so that its values at the two ends bound it. The
masses of a cell under both members come from the tail function, and all of a cell is put on two
multiples of the interval, one below and one above its losses, so that both masses are kept. That is
"connect the dots" (Doroshenko et al. 2022, arXiv 2207.04380) cell by cell, and for the same reason an
upper bound: moving likelihood ratios to the ends of a range that contains them, their mean kept, is what
processing of the new pair undoes. It needs no inverse of the loss, so it serves losses that rise and fall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privacy.accountants.losses.distribution import LossDistribution
from privacy.mechanisms.scalar_noise import ScalarNoise

Array = npt.NDArray[np.float64]
_TAIL = 1e-25  # mass beyond the last cell, where the loss may be unbounded
_FARTHEST = 1e15  # widths; a heavy tail beyond has a bounded loss of its own
_ROUND_OFF = 2e-15  # relative error allowed to a family's tail function
_PER_OCTAVE = 8  # cells in a factor of two of the distance from a kink, before refinement
_REFINEMENTS = 4
_LARGEST_CELLS = 4_000_000


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells of the line, ascending; the first and the last are the tails, and have one edge.

    Attributes:
      zero, one: Masses under f and under f(. - 1).
      zero_error, one_error: What round-off may have done to them.
      low, high: Bounds of ln f(x - 1) / f(x) in each cell; of a tail they may be infinite.
    """

    zero: Array
    one: Array
    zero_error: Array
    one_error: Array
    low: Array
    high: Array


def scalar_losses(
    noise: ScalarNoise, rate: float, shift: float, interval: float, optimistic: bool = False
) -> tuple[LossDistribution, ...]:
    """Return the loss distributions of one number with additive noise, Poisson-sampled at a rate.

    Args:
      noise: The noise, in units of the sensitivity.
      rate: Sampling rate, 0 < rate <= 1.
      shift: By how much a record changes the number, > 0: 1, or 2 under replace-one (rate 1 only).
      interval: Distance between two losses.
      optimistic: A lower bound instead (cells are merged, losses rounded down), to say how far the
        upper bound can be from the truth. Never an answer by itself.

    Returns:
      One distribution where both directions are the same (rate 1), else (remove, add).

    Guarantee: unless optimistic, delta of the result is at every epsilon at least that of the
    mechanism under zero-out and add-or-remove-one (rate 1 and shift 2: under replace-one), and stays so under
    composition.
    """
    cells = _refined(noise.scaled(1 / shift), rate, interval)
    remove = _remove(cells, rate, interval, optimistic)
    if rate == 1:
        return (remove,)
    return remove, _add(cells, rate, interval, optimistic)


@lru_cache(maxsize=256)
def scalar_spread(noise: ScalarNoise, rate: float, shift: float) -> tuple[float, float]:
    """Return (approximate standard deviation, largest finite value) of the loss, to choose an interval."""
    scaled = noise.scaled(1 / shift)
    cells = _cells(scaled, _edges(scaled))
    low, high = cells.low[1:-1], cells.high[1:-1]
    middle = np.clip((low + high) / 2, -50, 50)
    loss = np.log1p(rate * np.expm1(middle)) if rate < 1 else middle
    mixture = (1 - rate) * cells.zero[1:-1] + rate * cells.one[1:-1]
    top = float(high.max())
    if rate < 1:
        top = max(_sampled(top, rate), -math.log1p(-rate))
    return math.sqrt(float(mixture @ loss**2)), top


def _sampled(loss: float, rate: float) -> float:
    """Return ln((1-q) + q exp(loss))."""
    return float(_mixed(np.array([loss]), rate)[0])


def _mixed(losses: Array, rate: float) -> Array:
    if rate == 1:
        return losses
    small = np.log1p(rate * np.expm1(np.minimum(losses, 1.0)))
    with np.errstate(over="ignore"):
        large = np.logaddexp(math.log1p(-rate), math.log(rate) + losses)
    return np.asarray(np.where(losses > 1.0, large, small))


def _farthest(noise: ScalarNoise) -> float:
    """Return the last edge: 1 + where the tail is below `_TAIL`, or where no tail that is needed continues."""
    target = math.log(_TAIL)
    high = noise.width
    while float(noise.log_survival(high)) > target and high < _FARTHEST * noise.width:
        high *= 2
    low = high / 2
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if float(noise.log_survival(middle)) > target else (low, middle)
    return 1 + high


def _edges(noise: ScalarNoise) -> Array:
    """Return the edges that are finest at the kinks of f and of its shift, symmetric about 1/2."""
    end = _farthest(noise)
    breaks = noise.breaks(end)
    octaves = math.log2(end / noise.width) + 40
    away = end * 2.0 ** -np.linspace(0, octaves, math.ceil(octaves * _PER_OCTAVE))
    right = np.concatenate([breaks, -breaks, away, -away])
    both = np.concatenate([[0.0, 0.5, 1.0], right, 1 - right])
    both = np.unique(both[(both >= 1 - end) & (both <= end)])
    # Edges that round-off alone tells apart would make cells without mass of their own.
    apart = np.append(True, np.diff(both) > 4e-16 * np.abs(both[1:]))
    return np.asarray(both[apart])


def _losses(noise: ScalarNoise, edges: Array) -> tuple[Array, Array]:
    """Return (least, largest) loss in each inner cell."""
    if noise.shape == "steps":
        middle = (edges[:-1] + edges[1:]) / 2
        found = noise.log_density(middle - 1) - noise.log_density(middle)
        return found, found
    at = noise.log_density(edges - 1) - noise.log_density(edges)
    return np.minimum(at[:-1], at[1:]), np.maximum(at[:-1], at[1:])


def _refined(noise: ScalarNoise, rate: float, interval: float) -> _Cells:
    """Return cells within which the (sampled) loss varies by half an interval, wherever they have mass."""
    edges = _edges(noise)
    for _ in range(_REFINEMENTS):
        if noise.shape == "steps":
            break
        low, high = _losses(noise, edges)
        # Add has the same variation with the opposite sign.
        pieces = np.ceil((_mixed(high, rate) - _mixed(low, rate)) / (interval / 2))
        pieces = np.clip(pieces, 1, 64)
        if pieces.max() <= 1 or pieces.sum() > _LARGEST_CELLS:
            break
        counts = pieces.astype(np.int64)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        within = (np.arange(counts.sum()) - first) / np.repeat(pieces, counts)
        start = np.repeat(edges[:-1], counts)
        new = start + within * np.repeat(np.diff(edges), counts)
        edges = np.unique(np.append(new, edges[-1]))
    return _cells(noise, edges)


def _masses(noise: ScalarNoise, edges: Array) -> tuple[Array, Array]:
    """Return (masses of f between the edges and in both tails, their errors); 0 is an edge or outside."""
    tail = noise.survival(np.abs(edges))
    right = edges[:-1] >= 0
    inner = np.where(right, tail[:-1] - tail[1:], tail[1:] - tail[:-1])
    error = _ROUND_OFF * np.maximum(tail[:-1], tail[1:])
    masses = np.concatenate([tail[:1], np.maximum(inner, 0.0), tail[-1:]])
    return masses, np.concatenate([[0.0], error, [0.0]])


def _cells(noise: ScalarNoise, edges: Array) -> _Cells:
    low, high = _losses(noise, edges)
    if noise.shape == "log-convex":  # the loss falls to 0 in both tails
        left, right = (low[0], max(0.0, high[0])), (min(0.0, low[-1]), high[-1])
    else:
        left, right = (-math.inf, high[0]), (low[-1], math.inf)
    zero, zero_error = _masses(noise, edges)
    one, one_error = _masses(noise, edges - 1)
    return _Cells(
        zero,
        one,
        zero_error,
        one_error,
        np.concatenate([[left[0]], low, [right[0]]]),
        np.concatenate([[left[1]], high, [right[1]]]),
    )


def _exp_times(exponent: Array, mass: Array) -> Array:
    """Return exp(exponent) * mass without overflow."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.minimum(exponent + np.log(mass), 1.0)))


def _remove(cells: _Cells, rate: float, interval: float, optimistic: bool) -> LossDistribution:
    """Discretise the loss in direction remove: P is (1-q) f + q f(. - 1), Q is f."""
    mass = (1 - rate) * cells.zero + rate * cells.one
    low, high = _mixed(cells.low, rate), _mixed(cells.high, rate)
    if optimistic:
        return _merged(mass, cells.zero, low, interval)
    level = np.maximum(np.floor(low / interval), -1e15) * interval
    # P(cell) - exp(level) Q(cell), without the cancellation of what both members share
    shared = np.where(level < 30.0, np.expm1(np.minimum(level, 30.0)) + rate, 0.0) * cells.zero
    large = _exp_times(level, cells.zero) - (1 - rate) * cells.zero
    gap = rate * cells.one - np.where(level < 30.0, shared, large)
    error = rate * cells.one_error + _exp_times(level, cells.zero_error)
    return _connected(mass, gap + error, low, high, interval)


def _add(cells: _Cells, rate: float, interval: float, optimistic: bool) -> LossDistribution:
    """Discretise the loss in direction add: P is f, Q the mixture; the loss is minus the other one."""
    mixture = (1 - rate) * cells.zero + rate * cells.one
    low, high = -_mixed(cells.high, rate), -_mixed(cells.low, rate)
    if optimistic:
        return _merged(cells.zero, mixture, low, interval)
    level = np.maximum(np.floor(low / interval), -1e15) * interval
    gap = -np.expm1(level + math.log1p(-rate)) * cells.zero
    gap -= _exp_times(level, rate * cells.one)
    error = cells.zero_error * (1 + (1 - rate) * np.exp(level))
    error = error + _exp_times(level, rate * cells.one_error)
    return _connected(cells.zero, gap + error, low, high, interval)


def _connected(
    mass: Array, gap: Array, low: Array, high: Array, interval: float
) -> LossDistribution:
    """Put each cell on a loss below and one above its own, both masses kept."""
    infinite = np.isposinf(high)
    infinity = float(mass[infinite].sum())
    unbounded = np.isneginf(low)  # all of it at its largest loss
    high = np.where(infinite, 0.0, high)
    above = np.ceil(high / interval).astype(np.int64)
    below = np.floor(np.where(unbounded | infinite, 0.0, low) / interval).astype(np.int64)
    below = np.where(unbounded, above - 1, below)
    above = np.maximum(above, below + 1)
    upper = gap / -np.expm1(-(above - below) * interval)
    upper = np.clip(np.where(unbounded, mass, upper), 0.0, mass)
    kept = ~infinite
    first = int(below[kept].min())
    size = int(above[kept].max()) - first + 1
    probs = np.bincount(below[kept] - first, (mass - upper)[kept], size).astype(np.float64)
    probs += np.bincount(above[kept] - first, upper[kept], size)
    return LossDistribution(interval, first, probs, infinity, error=0.0)


def _merged(mass: Array, other: Array, low: Array, interval: float) -> LossDistribution:
    """Return a lower bound: each cell is one outcome, its loss rounded down."""
    kept = (mass > 0) & (other > 0) & np.isfinite(low)
    with np.errstate(divide="ignore"):
        place = np.floor(np.log(mass[kept]) / interval - np.log(other[kept]) / interval)
    index = place.astype(np.int64)
    first = int(index.min())
    probs = np.bincount(index - first, mass[kept]).astype(np.float64)
    return LossDistribution(interval, first, probs, infinity=0.0, error=0.0)
