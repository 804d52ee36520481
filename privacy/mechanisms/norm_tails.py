"""Upper tail bounds, in closed form, on the norm of a noisy sum for every data set.

A record's part of a sum has norm at most C, so a sum over a sample of N records has norm at most C N, whatever the
records; noise is independent of what it is added to. Every bound here is exceeded with probability at most
exp(-exponent), and none of them is a limit for large dimensions.

*Sample sizes* (`largest_sample`). N is a sum of independent 0-1 variables with mean m = E N, so E exp(l N) <=
exp(m (e^l - 1)), and by Markov's inequality P(N >= k) <= exp(-m h(k/m)), h(x) = x ln x - x + 1, for k >= m (Chernoff;
Boucheron, Lugosi and Massart 2013, "Concentration Inequalities", section 2.2). `largest_sample` solves m h(k/m) =
exponent. It needs the mean alone, not the number of records.

*Gaussian noise* (`GaussianLength`). For a fixed v and Z ~ N(0, s^2 I_d), X = ||v + Z||^2 / s^2 is noncentral
chi-squared with d degrees of freedom and noncentrality l = ||v||^2 / s^2: ln E exp(t X) = -(d/2) ln(1 - 2t) + l t / (1 -
2t). With -ln(1 - u) - u <= u^2 / (2 (1 - u)), ln E exp(t (X - d - l)) <= (d + 2l) t^2 / (1 - 2t), so X is sub-gamma and

    P(X > d + l + 2 sqrt((d + 2l) x) + 2x) <= exp(-x)

(Birge 2001, "An alternative point of view on Lepski's method", lemma 8.1; for v = 0 Laurent and Massart 2000). The
bound grows with ||v||, so it holds for every v of norm at most a given length.

*Independent noise of any symmetric density* (`ScalarLength`), heavy tails included. With a such that P(|z| > a) <=
exp(-y) / d, all |z_i| <= a but with probability exp(-y); there z_i is w_i = z_i cut to [-a, a], which has every moment.
By Chernoff's bound, each but with probability exp(-y), for whatever u > 0

    sum w_i^2 <= (y + d ln E exp(u w^2)) / u
    sum v_i w_i <= ||v|| (y + E cosh(u w) - 1) / u

The second: E exp(u v_i w) = E cosh(u v_i w) by symmetry, cosh(r x) - 1 <= r^2 (cosh(x) - 1) for |r| <= 1 term by term of
its series, and the sum of ln(1 + v_i^2 k) over a unit vector is at most k. With ||v + Z||^2 = ||v||^2 + 2 v.Z + ||Z||^2
and y = exponent + ln 3 for the three. Both expectations are bounded from above by sums on a grid: for g that rises with |w|
from 0, E g(w) is the integral of g'(t) P(|z| > t) from 0 to a, and P(|z| > t) falls. u is the best of a list.

*Several sums* (`walk`). P_t = P_{t-1} + G_t + Z_t, where ||G_t|| <= length, and G_t may depend on all earlier noise (the
gradients of a step are taken where the steps before have led), but Z_t is independent of P_{t-1} + G_t. Given these, Z_t
is noise on a fixed vector: if ||P_{t-1}|| <= R_{t-1}, then ||P_t|| <= R_t = bound(R_{t-1} + length) but with probability
exp(-y), y = exponent + ln T. By induction ||P_T|| <= R_T but with probability T exp(-y).
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import lambertw

from privacy.mechanisms.scalar_noise import ScalarNoise

_POINTS = 4000  # of the grid: its sums are less than 1 % above the integrals
_RATES = 200  # the list of u
_FAR = 600.0  # exponents beyond this are not looked at
_EVENTS = 3.0  # that a bound on scalar noise is a union of


def largest_sample(mean: float, exponent: float) -> float:
    """Return a number of records that a sample exceeds with probability at most exp(-exponent).

    Args:
      mean: Expected size of a sample into which each record comes by itself, finite and > 0.
      exponent: Finite and > 0.

    Raises:
      ValueError: An argument is out of range.
    """
    _require_positive("mean", mean)
    _require_positive("exponent", exponent)
    # x = k/m, (x/e) ln(x/e) = (exponent/m - 1)/e; W's argument is above its branch point -1/e.
    argument = (exponent / mean - 1) / math.e
    root = float(lambertw(max(argument, -1 / math.e)).real)
    return mean * math.exp(1 + root) * (1 + 1e-7)


class NoiseLength(abc.ABC):
    """Noise on a vector, as what it does to the vector's length."""

    @abc.abstractmethod
    def bound(self, length: float, exponent: float) -> float:
        """Return a bound on ||v + noise|| that holds for every fixed v with ||v|| <= length, but with probability
        exp(-exponent).

        Raises:
          ValueError: An argument is negative or not finite.
        """


@dataclass(frozen=True)
class GaussianLength(NoiseLength):
    """N(0, std^2) on each of `dimension` coordinates.

    Raises:
      ValueError: A parameter is out of range.
    """

    dimension: int
    std: float

    def __post_init__(self) -> None:
        """Check the parameters."""
        _require_positive("dimension", self.dimension)
        _require_positive("std", self.std)

    def bound(self, length: float, exponent: float) -> float:
        """See `NoiseLength`."""
        _check(length, exponent)
        energy = self.dimension * self.std**2
        spread = self.std * math.sqrt((energy + 2 * length**2) * exponent)
        return math.sqrt(energy + length**2 + 2 * spread + 2 * exponent * self.std**2)


@dataclass(frozen=True)
class ScalarLength(NoiseLength):
    """Independent noise of one symmetric density on each of `dimension` coordinates; its moments need not exist.

    Raises:
      ValueError: The dimension is out of range.
    """

    dimension: int
    noise: ScalarNoise

    def __post_init__(self) -> None:
        """Check the parameters."""
        _require_positive("dimension", self.dimension)

    def bound(self, length: float, exponent: float) -> float:
        """See `NoiseLength`."""
        _check(length, exponent)
        squares, along = _cut_sums(self.noise, self.dimension, exponent + math.log(_EVENTS))
        return math.sqrt(length**2 + 2 * length * along + squares)


def walk(noise: NoiseLength, length: float, steps: int, exponent: float) -> float:
    """Return a bound on the length of `steps` noisy sums added up, each of norm at most `length` before its noise.

    A sum may depend on the noise of the sums before it.

    Raises:
      ValueError: An argument is out of range.
    """
    _require_positive("steps", steps)
    reached = 0.0
    for _ in range(steps):
        reached = noise.bound(reached + length, exponent + math.log(steps))
    return reached


def side_by_side(noise: NoiseLength, length: float, steps: int, exponent: float) -> float:
    """Return a bound on the length of `steps` noisy vectors written one after the other, as for `walk`."""
    _require_positive("steps", steps)
    return math.sqrt(steps) * noise.bound(length, exponent + math.log(steps))


@lru_cache(maxsize=256)
def _cut_sums(noise: ScalarNoise, dimension: int, y: float) -> tuple[float, float]:
    """Return the bounds of sum w_i^2, and of sum v_i w_i for a unit vector v."""
    largest = _cut(noise, y + math.log(dimension))
    start = min(noise.width * 1e-3, largest / 2)
    grid = np.concatenate([[0.0], np.geomspace(start, largest, _POINTS)])
    tail = np.minimum(1.0, 2 * noise.survival(grid[:-1]))  # at the left end: it falls
    rates = np.geomspace(
        1e-4, 100 * max(y, 1.0), _RATES
    )  # in units of 1 / a and 1 / a^2, below exp's limit
    rates = rates[rates <= _FAR]
    squares, along = math.inf, math.inf
    for rate in rates / largest**2:
        excess = float(tail @ np.diff(np.expm1(rate * grid**2)))
        squares = min(squares, (y + dimension * math.log1p(excess)) / float(rate))
    for rate in rates / largest:
        excess = float(tail @ np.diff(np.cosh(rate * grid)))
        along = min(along, (y + excess) / float(rate))
    return squares, along


def _cut(noise: ScalarNoise, exponent: float) -> float:
    """Return a with P(|z| > a) <= exp(-exponent)."""
    target = -exponent - math.log(2.0)  # survival is one-sided
    high = noise.width
    while float(noise.log_survival(high)) > target:
        high *= 2
        if not math.isfinite(high):
            raise ValueError(f"Expected noise whose tail falls, got {noise}")
    low = high / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if float(noise.log_survival(middle)) <= target else (middle, high)
    return high


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"Expected a finite {name} > 0, got {name}={value}")


def _check(length: float, exponent: float) -> None:
    if not (math.isfinite(length) and length >= 0 and math.isfinite(exponent) and exponent >= 0):
        raise ValueError(
            f"Expected a finite length and exponent >= 0, got length={length}, exponent={exponent}"
        )
