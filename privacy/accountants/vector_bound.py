"""Bound vectors with independent scalar noise on each coordinate and a bounded change in L2 norm.

Two figures, in units of the norm's bound:

* `spread_shift`: the loss of the change that is the same in every coordinate, 1 / sqrt(d), computed
  exactly by composition. A record can make that change, so the truth is at least this; in high dimension
  it tends to Gaussian differential privacy with mu = sqrt(I), I the Fisher information.
* `gaussian_bound`: a mu such that every change of L2 norm at most 1, in every dimension, is mu-GDP. This
  is what the ledger is accounted with, sampled and composed as a Gaussian mechanism.

Why the second holds. Let mu(s) be the least mu such that one number changed by s is mu(s)-GDP, and mu the
supremum of mu(s) / s over s > 0. A change v of the vector is a product of independent changes |v_i| of
its coordinates, each mu |v_i|-GDP, and the product of Gaussian trade-off functions is that of the root
of the sum of squares (Dong, Roth and Su 2022, "Gaussian differential privacy", proposition 3.2 and
theorem 3.2), mu |v|. So mu-GDP holds, with whatever Poisson sampling and composition follow.

The supremum is over a continuum, and it is found from above in three ranges of s, for densities whose
logarithm is convex on x > 0, with score psi = -f'/f falling from psi0 at 0:

* s >= s1: the loss is at most s psi0, and pure eps-DP is mu-GDP with mu = -2 ndtri(1 / (1 + e^eps))
  (ibid., proposition 2.12 with 2.11); over s that falls.
* s0 <= s <= s1: mu(b) of the end of a range [a, b] bounds mu(s) within it (a smaller change costs
  less), so mu(b) / a bounds the quotient. Ranges are made to keep below the value returned.
* s <= s0: with eps = s e, the set where the loss exceeds eps is within x < s/2, and there the loss is at
  most s psi(|x|), and at most s psi0 in (0, s/2). So H <= s (E[(psi - e)+; x < 0] + s f(0) (psi0 - e)+ / 2),
  where 1 - e^-y <= y was used; and delta of mu s-GDP at s e is at least s (mu phi(a) - e ndtr(-a)) (1 -
  (mu s)^2), a = e / mu, where the second order is positive. The first is convex in e and the second is
  too, so they are compared on intervals: the larger end of one with the smaller of the other.

Noise with a cusp, psi0 infinite, is refused. Of exp(-|x|^beta), beta < 1, no mu is a bound: for any level e
let s be the largest change with psi(2s) >= 2e, a power of 1 / e. On x in (-s, 0) the loss is at least
s psi(2s) >= 2 s e, so that H at s e is at least of order f(0) s^2 e, again a power of 1 / e; delta of mu s-GDP
at s e is at most ndtr(-e / mu + mu s / 2), which falls faster than any power. So for large e the first is larger.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from privacy.accountants.dominating_mu import dominating_mu
from privacy.accountants.gaussian_curve import gaussian_epsilon
from privacy.accountants.losses.distribution import LossDistribution, compose
from privacy.accountants.losses.scalar import scalar_losses
from privacy.mechanisms.scalar_noise.base import ScalarNoise
from privacy.mechanisms.scalar_noise.information import fisher_information

Array = npt.NDArray[np.float64]
LARGEST_DIMENSION = 100_000
_LARGEST_SPLIT = 16_384  # beyond, the limit is nearer than what round-off is allowed for
_SLACK = 1.005  # of the bound, over what the limit of small changes needs
_SMALLEST_CHANGE = 0.008  # over psi0: where the third range begins
_LOSSES = 400  # of one number's loss distribution, on each side of 0
_LARGEST_MU = 200.0  # in units of 1 / width; more is hardly a bound
_DIGITS = 12


def spread_shift(noise: ScalarNoise, dimension: int) -> LossDistribution:
    """Return the loss of a change by 1 / sqrt(dimension) in each of `dimension` coordinates.

    Pessimistic for that change, which is not proven to be the worst one: see `gaussian_bound`.

    Args:
      noise: The noise of each coordinate, in units of the L2 bound.
      dimension: 1 to 1e5; with more, round-off would show at delta = 1e-10, and the limit
        `limit_mu` is as good.

    Raises:
      ValueError: The dimension is out of range.
    """
    if isinstance(dimension, bool) or dimension != int(dimension) or dimension < 1:
        raise ValueError(f"Expected a whole dimension >= 1, got dimension={dimension}")
    if dimension > LARGEST_DIMENSION:
        raise ValueError(f"Expected dimension <= {LARGEST_DIMENSION}, got dimension={dimension}")
    shift = 1 / math.sqrt(dimension)
    spread = min(limit_mu(noise), 1e3) * shift
    interval = min(1e-4, max(1e-6, 10.0 ** math.floor(math.log10(spread / 100))))
    (one,) = scalar_losses(noise, 1.0, shift, interval)
    found = compose([(one, int(dimension))])
    assert found is not None  # no limit of size was given
    return found


def worst_equal_split(noise: ScalarNoise, dimension: int, delta: float) -> tuple[float, int]:
    """Return (epsilon, m): the most that a change spread equally over m of the coordinates costs.

    m runs over the powers of two up to 16384 below the dimension, and the dimension; above 16384 the
    limit stands for it. The cost of the worst change is at least this; it is at most that of
    `gaussian_bound`. For large delta few coordinates cost most, for small delta many.
    """
    largest = min(dimension, _LARGEST_SPLIT)
    splits = {2**k for k in range(largest.bit_length())} | {largest}
    costs = [(spread_shift(noise, m).epsilon(delta), m) for m in sorted(splits)]
    if dimension > largest:
        costs.append((gaussian_epsilon(limit_mu(noise), delta), dimension))
    return max(costs)


def limit_mu(noise: ScalarNoise) -> float:
    """Return mu of the spread shift as the dimension grows: sqrt(I), per unit of the L2 bound."""
    return math.sqrt(fisher_information(noise))


def why_no_bound(noise: ScalarNoise) -> str | None:
    """Return the reason why `gaussian_bound` does not support noise of a family, or None if it does."""
    if noise.family == "gaussian":
        return None
    if noise.shape != "log-convex":
        return f"{noise.family} noise on vectors has no bound here"
    if not math.isfinite(noise.peak_score):
        return f"{noise.family} noise with a cusp at 0 has no Gaussian bound on vectors"
    return None


def gaussian_bound(noise: ScalarNoise) -> float:
    """Return mu such that a vector with this noise on each coordinate is mu-GDP for a change of L2 norm 1.

    Within 1 % of the least mu that a bound by single coordinates can give. That is at least sqrt(pi / 2)
    E[u] for a scale mixture of Laplace noise (u the inverse scale), at most 1.2534 times the limit
    of the spread shift where that limit is E[u], and the limit itself where it is more than that.

    Args:
      noise: In units of the L2 bound; log-convex with a finite score at 0, or Gaussian.

    Raises:
      ValueError: Noise of another kind.

    Guarantee: mu-GDP under zero-out and add-or-remove-one for any dimension, of a vector that one record changes
    by at most 1 in L2 norm (replace-one: 2 mu).
    """
    reason = why_no_bound(noise)
    if reason is not None:
        raise ValueError(f"Expected Gaussian, Laplace or LMO noise, got {noise!r}: {reason}")
    if noise.family == "gaussian":
        return 1 / noise.std
    # The same noise whatever its scale, so that it is computed once for all multiples.
    unit = noise.scaled(1 / noise.width)
    rounded = {k: float(f"{v:.{_DIGITS}g}") for k, v in unit.parameters.items()}
    parameters = tuple(sorted(rounded.items()))
    return _unit_bound(type(noise), parameters) * (1 + 1e-9) / noise.width


@lru_cache(maxsize=64)
def _unit_bound(family: type[ScalarNoise], parameters: tuple[tuple[str, float], ...]) -> float:
    noise = family(**dict(parameters))
    sharpest = noise.peak_score * (1 + 1e-9)
    smallest = _SMALLEST_CHANGE / sharpest
    # The supremum of mu(s) / s by the module's three ranges: start from the bound for small changes,
    # raise it until the middle and the upper range fit below it too. Each raise is at least 0.5 %.
    mu = _small_changes(noise, sharpest, smallest) * _SLACK
    while (found := _largest_quotient(noise, sharpest, smallest, mu)) > mu:
        mu = found
        if mu > _LARGEST_MU:
            return math.inf
    return mu


def _largest_quotient(noise: ScalarNoise, sharpest: float, smallest: float, mu: float) -> float:
    """Return `mu` if it bounds mu(s) / s for all s >= `smallest`, else a larger candidate."""
    change = 1.0
    # Find s1, from which on pure DP of loss s psi0 is enough (Dong, Roth and Su 2022, prop. 2.12).
    while -2 * float(ndtri(1 / (1 + math.exp(min(change * sharpest, 700.0))))) > mu * change:
        change *= 1.5
        if change * sharpest > 600:
            return math.inf
    while change > smallest:
        top = float(noise.log_density(0.0) - noise.log_density(change))
        (one,) = scalar_losses(noise, 1.0, change, top / _LOSSES)
        with np.errstate(divide="ignore"):
            here = dominating_mu(one, 0.0)
        # mu(b) bounds mu(s) on [a, b] and mu(b) / a the quotient, so the next end a = mu(b) / mu keeps
        # the quotient at most mu. Without progress (a close to b) the candidate itself is too small.
        if here > mu * change * 0.999:
            return max(here / change * 1.01, mu * 1.005)
        change = here / mu
    return mu


def _small_changes(noise: ScalarNoise, sharpest: float, change: float) -> float:
    """Return the least mu that bounds mu(s) / s for s <= `change`."""
    edges = np.linspace(0, sharpest, 4001)
    needed = _mean_excess(noise, sharpest, edges) + change * math.exp(
        float(noise.log_density(0.0))
    ) / 2 * (sharpest - edges)

    def enough(mu: float) -> bool:
        a = edges / mu
        given = mu * np.exp(-0.5 * a**2) / math.sqrt(2 * math.pi) - edges * ndtr(-a)
        given *= 1 - (mu * change) ** 2
        # Both fall with e: the left end of what is needed against the right end of what is given,
        # with what lies between by the tangent of the needed one (slope at least -1/2).
        return bool(np.all(needed[:-1] <= given[1:] + 1e-300)) if mu else False

    low, high = 0.0, 1.0 / noise.width
    while not enough(high):
        low, high = high, 1.5 * high
        if high > _LARGEST_MU / noise.width:
            return math.inf
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _mean_excess(noise: ScalarNoise, sharpest: float, levels: Array) -> Array:
    """Return an upper bound of E[(psi(|x|) - e)+; x < 0] at each level e, by cells of x.

    In a cell psi is at most its value at the end nearer to 0.
    """
    x = np.concatenate([[0.0], noise.width * np.geomspace(1e-7, 1e12, 20_000)])
    # psi falls, so a difference to the left bounds it from above, and at 0 only its limit does.
    left = x[1:] - np.maximum(1e-7 * x[1:], 1e-8 * noise.width)
    slope = (noise.log_density(left) - noise.log_density(x[1:])) / (x[1:] - left)
    score = np.append(sharpest, np.minimum(slope * (1 + 1e-6), sharpest))
    score = np.maximum.accumulate(score[::-1])[::-1]  # round-off may let it rise
    mass = np.append(noise.survival(x[:-1]) - noise.survival(x[1:]), noise.survival(x[-1]))
    order = score[::-1]  # ascending
    tail_mass = np.cumsum(mass)[::-1]
    tail_sum = np.cumsum(mass * score)[::-1]
    first = np.searchsorted(order, levels, side="right")
    inside = first < order.size
    index = np.minimum(first, order.size - 1)
    return np.where(inside, tail_sum[index] - levels * tail_mass[index], 0.0)
