"""Discrete privacy loss distributions: composition by FFT, and delta as a function of epsilon.

The discretisation of each event comes from dp_accounting ("connect the dots", Doroshenko et al.
2022, arXiv 2207.04380): a pessimistic distribution on multiples of an interval. Composition is
convolution (Koskela et al. 2020; Meiser and Mohammadi 2018). Mass that truncation moves is moved to
an infinite loss, and an allowance for floating-point round-off is added to every delta: without it
the convolution of 1e5 events under-reports delta by about 1e-12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.signal

Array = npt.NDArray[np.float64]
TAIL_MASS = 1e-15
_ORDERS = 8  # orders of Chernoff bounds in a factor of e; half a step off costs 0.2 % at most
_NEGLIGIBLE = -80.0  # log of a Fourier coefficient that is far below round-off
_SUMMATION = 1e-11  # relative error of sums of up to 1e7 masses, with a margin
_MACHINE_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class LossDistribution:
    """A distribution of the privacy loss on multiples of an interval.

    Attributes:
      interval: Distance between two neighbouring losses.
      start: The loss of probs[0] is start * interval.
      probs: Masses; round-off may make some slightly negative.
      infinity: Mass at an infinite loss.
      error: Allowance for round-off, added to every delta.
    """

    interval: float
    start: int
    probs: Array
    infinity: float
    error: float

    @property
    def losses(self) -> Array:
        """The losses of `probs`, ascending."""
        return np.asarray((self.start + np.arange(self.probs.size)) * self.interval)

    @cached_property
    def _logarithms(self) -> tuple[Array, Array]:
        """(losses, logs of their masses) where the mass is positive."""
        kept = self.probs > 0
        return self.losses[kept], np.log(self.probs[kept])

    @cached_property
    def _positive(self) -> tuple[Array, Array, Array]:
        """(losses, upper, lower) of the atoms with loss > 0, ascending, tails summed.

        upper[i] = sum of p_j over j >= i; lower[i] = sum of p_j exp(losses[i] - losses[j]) over
        j >= i. Relative to the atom's own loss, so that no exponential over- or underflows.
        """
        first = max(0, 1 - self.start)
        probs = self.probs[first:]
        places: Array = np.arange(probs.size, dtype=np.float64) + (self.start + first)
        losses = places * self.interval
        upper = np.cumsum(probs[::-1])[::-1]
        # lower[i] = p_i + exp(-interval) lower[i + 1], from the end
        decay = math.exp(-self.interval)
        lower = scipy.signal.lfilter([1.0], [1.0, -decay], probs[::-1])[::-1]
        return losses, upper, lower

    @cached_property
    def _variance(self) -> float:
        mass = float(self.probs.sum())
        mean = float(np.dot(self.probs, self.losses)) / mass
        return float(np.dot(self.probs, (self.losses - mean) ** 2)) / mass

    @cached_property
    def _log_mgfs(self) -> dict[float, float]:
        """Cache of `_log_mgf`, by order."""
        return {}

    def delta(self, epsilon: float | Sequence[float] | Array) -> Array:
        """Return the upper bound of the hockey-stick divergence at each epsilon >= 0."""
        epsilons = np.atleast_1d(np.asarray(epsilon, dtype=np.float64))
        losses, upper, lower = self._positive
        index = np.searchsorted(losses, epsilons, side="right")
        inside = index < losses.size
        result = np.full(epsilons.shape, self.infinity + self.error)
        i = index[inside]
        values = upper[i] - np.exp(epsilons[inside] - losses[i]) * lower[i]
        result[inside] += np.maximum(values, 0.0) * (1 + _SUMMATION)
        return np.asarray(np.minimum(result, 1.0))

    def epsilon(self, delta: float) -> float:
        """Return the smallest epsilon >= 0 whose delta is at most `delta`; may be infinite."""
        rest = (delta - self.infinity - self.error) / (1 + _SUMMATION)
        if rest < 0:
            return math.inf
        losses, upper, lower = self._positive
        if losses.size == 0 or self.delta(0.0)[0] <= delta:
            return 0.0
        # delta at each loss, from the atoms strictly above it
        step = math.exp(-self.interval)
        at_losses = np.append(upper[1:] - step * lower[1:], 0.0)
        too_large = np.flatnonzero(at_losses > rest)
        position = int(too_large[-1]) + 1 if too_large.size else 0
        if position >= losses.size:
            return float(losses[-1])
        # Below the atom at `position`, delta is linear in exp(epsilon): solve it.
        low = float(losses[position - 1]) if position > 0 else 0.0
        high = float(losses[position])
        if lower[position] <= 0 or upper[position] <= rest:
            return high
        exact = high + math.log((upper[position] - rest) / lower[position])
        return min(max(exact, low), high)


def no_guarantee(interval: float) -> LossDistribution:
    """Return all mass at an infinite loss."""
    return LossDistribution(interval, start=0, probs=np.zeros(1), infinity=1.0, error=0.0)


def _log_mgf(part: LossDistribution, order: float) -> float:
    """Return log of E[exp(order * loss)] over the finite losses; computed once for each order."""
    known = part._log_mgfs
    if order not in known:
        losses, log_probs = part._logarithms
        exponents = order * losses + log_probs
        largest = float(exponents.max())
        known[order] = largest + math.log(float(np.exp(exponents - largest).sum()))
    return known[order]


def _range(parts: Sequence[tuple[LossDistribution, int]]) -> tuple[int, int]:
    """Return indices outside of which the composed mass is at most TAIL_MASS, by Chernoff bounds."""
    interval = parts[0][0].interval
    low = sum(count * part.start for part, count in parts)
    high = sum(count * (part.start + part.probs.size - 1) for part, count in parts)
    variance = 0.0
    for part, count in parts:
        variance += count * part._variance
    if variance <= 0:
        return low, high
    needed = math.log(2 / TAIL_MASS)
    # Chernoff: P(L > x) <= exp(log_mgf(t) - t x) for every t > 0, so x = (log_mgf(t) + needed) / t
    # cuts off at most exp(-needed). Any order t gives a valid cut; the search only makes it tight.
    best = math.sqrt(2 * needed / variance)  # for a Gaussian of the same variance

    def reach(sign: float, place: int) -> float:
        """Return the distance of the Chernoff bound from zero, in intervals; unimodal in the order.

        Orders lie on a grid, so that those of earlier compositions are known.
        """
        if place > highest:
            return math.inf  # where losses are bounded, the search would never end
        order = sign * math.exp(place / _ORDERS)
        log_mgf = sum(count * _log_mgf(part, order) for part, count in parts)
        return (log_mgf + needed) / abs(order) / interval

    start = round(math.log(best) * _ORDERS)
    highest = start + 2 * _ORDERS
    bounds = {}
    for sign in (1.0, -1.0):
        place, step = start, 2 * _ORDERS
        found = reach(sign, place)
        while step:  # losses that are rare and large ask for a much smaller order than a Gaussian's
            lower, higher = reach(sign, place - step), reach(sign, place + step)
            if min(lower, higher) < found:
                place += step if higher < lower else -step
                found = min(lower, higher)
            else:
                step //= 2
        bounds[sign] = found  # valid at whatever order the search ended
    if math.isfinite(bounds[1.0]):
        high = min(high, math.ceil(bounds[1.0]))
    if math.isfinite(bounds[-1.0]):
        low = max(low, math.floor(-bounds[-1.0]))
    return low, max(low, high)


def compose(
    parts: Sequence[tuple[LossDistribution, int]], largest: float = math.inf
) -> LossDistribution | None:
    """Return the distribution of the sum of independent losses: count copies of each part.

    Args:
      parts: At least one (distribution, count >= 1), all with the same interval.
      largest: Where the result would have more losses than this, None is returned instead.

    Returns:
      A pessimistic distribution: mass that wraps around or is cut off is moved to a larger loss.
    """
    if len(parts) == 1 and parts[0][1] == 1:
        alone = parts[0][0]
        return replace(alone, error=max(alone.error, _MACHINE_EPSILON))
    low, high = _range(parts)
    size = high - low + 1
    if size > largest:
        return None
    longest = max(part.probs.size for part, _ in parts)
    length = int(scipy.fft.next_fast_len(max(size, longest), real=True))
    # The spectrum in polar form: powers neither underflow to slow subnormal numbers nor overflow.
    log_size = np.zeros(length // 2 + 1)
    phase = np.zeros(length // 2 + 1)
    origin = 0  # index of the composed array's element 0
    infinity_log = 0.0
    for part, count in parts:
        # Centred at its mean, so that powers do not amplify the phase's round-off.
        indices = np.arange(part.probs.size)
        centre = round(float(np.dot(indices, part.probs)) / float(part.probs.sum()))
        padded = np.zeros(length)
        padded[: part.probs.size] = part.probs
        transformed = scipy.fft.rfft(np.roll(padded, -centre))
        with np.errstate(divide="ignore"):
            log_size += count * np.log(np.abs(transformed))
        phase += count * np.angle(transformed)
        origin += count * (part.start + centre)
        infinity_log += count * math.log1p(-min(part.infinity, 1 - 1e-16))
    spectrum = np.zeros(length // 2 + 1, dtype=np.complex128)
    kept = log_size > _NEGLIGIBLE
    spectrum[kept] = np.exp(log_size[kept] + 1j * phase[kept])
    # Cyclic convolution: mass beyond the range wraps around. `_range` bounds that mass by TAIL_MASS,
    # which is added to the infinite loss below, so that the result stays an upper bound.
    composed = scipy.fft.irfft(spectrum, length)
    composed = np.roll(composed, (origin - low) % length)[:size]
    total = sum(count for _, count in parts)
    error = sum(count * part.error for part, count in parts) + total * _MACHINE_EPSILON
    return LossDistribution(
        interval=parts[0][0].interval,
        start=low,
        probs=composed,
        infinity=TAIL_MASS - math.expm1(infinity_log),
        error=error,
    )
