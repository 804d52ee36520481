"""Staircase noise (Geng and Viswanath 2014, arXiv 1212.1186): the best noise for pure privacy.

Among all additive noises that are (epsilon, 0)-DP for a number of sensitivity 1, the staircase of
period 1 has the least E|x|, at gamma = 1 / (1 + e^(epsilon/2)), and the least variance, at another gamma
(theorems 3 and 4). Its loss is -epsilon, 0 or epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.mechanisms.scalar_noise.base import Array, ScalarNoise, require_positive
from privacy.randomness import RandomSource


@dataclass(frozen=True)
class StaircaseNoise(ScalarNoise):
    """Density a for |x| <= gamma period, and a e^(-k epsilon) on the k-th step of width period after it.

    Guarantee: (epsilon, 0)-DP for a number that a record changes by at most `period`.

    Attributes:
      epsilon: How much the logarithm of the density falls from one step to the next, > 0.
      gamma: Half the width of the top step in periods, above 0 and at most 1. (Gamma towards 0 is gamma =
        1 again: the top step vanishes.)
      period: Width of a step; 1 for a number of sensitivity 1.
    """

    family = "staircase"
    shape = "steps"

    epsilon: float
    gamma: float
    period: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        require_positive("epsilon", self.epsilon)
        require_positive("period", self.period)
        if not 0 < self.gamma <= 1:
            raise ValueError(f"Expected 0 < gamma <= 1, got gamma={self.gamma}")

    @property
    def _log_top(self) -> float:
        """Log of the density at 0: (1 - b) / (2 period (gamma + b (1 - gamma))), b = e^-epsilon."""
        b = math.exp(-self.epsilon)
        area = 2 * self.period * (self.gamma + b * (1 - self.gamma))
        return math.log(-math.expm1(-self.epsilon)) - math.log(area)

    def _step(self, size: Array) -> Array:
        """Return the step that |x| is on, 0 the top; an edge, as `breaks` has it, belongs to the upper step."""
        step = np.maximum(np.ceil(size / self.period - self.gamma), 0.0)
        step = np.where(size <= (step - 1 + self.gamma) * self.period, step - 1, step)
        return np.where(size > (step + self.gamma) * self.period, step + 1, np.maximum(step, 0.0))

    def log_density(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`."""
        step = self._step(np.abs(np.asarray(x, dtype=np.float64)))
        return np.asarray(self._log_top - self.epsilon * step)

    def survival(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`."""
        right = np.exp(self._log_tail(np.abs(np.asarray(x, dtype=np.float64))))
        return np.where(np.asarray(x) >= 0, right, 1 - right)

    def log_survival(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`; without underflow."""
        right = self._log_tail(np.abs(np.asarray(x, dtype=np.float64)))
        return np.where(np.asarray(x) >= 0, right, np.log1p(-np.exp(right)))

    def _log_tail(self, size: Array) -> Array:
        """Return log of P(X > |x|): the rest of its step, and all steps after it (a geometric series)."""
        step = self._step(size)
        rest = (step + self.gamma) * self.period - size + self.period / math.expm1(self.epsilon)
        return np.asarray(self._log_top - self.epsilon * step + np.log(rest))

    def breaks(self, largest: float) -> Array:
        """See `ScalarNoise`: the edges of the steps."""
        count = math.floor(largest / self.period - self.gamma) + 2
        edges = (np.arange(max(count, 0), dtype=np.float64) + self.gamma) * self.period
        return np.asarray(edges[edges <= largest])

    @property
    def _geometric_share(self) -> float:
        """P(A) of `sample`."""
        first = -self.gamma * math.expm1(-self.epsilon)
        return first / (first + math.exp(-self.epsilon))

    @property
    def std(self) -> float:
        """See `ScalarNoise`: E[x^2] = E[r^2] / 3, r of `sample`."""
        share, mean, variance = self._geometric_share, *self._geometric_moments
        squares = share * (variance + (mean + self.gamma) ** 2)
        squares += (1 - share) * (2 * variance + (1 + 2 * mean + self.gamma) ** 2)
        return self.period * math.sqrt(squares / 3)

    @property
    def mean_abs(self) -> float:
        """See `ScalarNoise`: E|x| = E[r] / 2, r of `sample`."""
        share, mean = self._geometric_share, self._geometric_moments[0]
        return self.period * (self.gamma + share * mean + (1 - share) * (1 + 2 * mean)) / 2

    @property
    def _geometric_moments(self) -> tuple[float, float]:
        """Mean and variance of P(k) = (1 - b) b^k."""
        mean = 1 / math.expm1(self.epsilon)
        return mean, mean * (1 + mean)

    @property
    def peak_score(self) -> float:
        """See `ScalarNoise`: the first step is level."""
        return 0.0

    def scaled(self, factor: float) -> StaircaseNoise:
        """See `ScalarNoise`."""
        require_positive("factor", factor)
        return StaircaseNoise(self.epsilon, self.gamma, self.period * factor)

    def sample(self, shape: int | Sequence[int], source: RandomSource) -> Array:
        """See `ScalarNoise`.

        A density that falls from 0 is a mixture of uniform ones, here on (-r, r), r = period (k + gamma),
        with weights proportional to (k + gamma) b^k: k is geometric with probability P(A) = gamma (1 -
        b) / (gamma (1 - b) + b), else 1 and the sum of two geometric numbers. A geometric number is an
        exponential one (half the sum of two squared normals) over epsilon, rounded down.
        """
        geometric = source.random(shape) < self._geometric_share
        step = self._geometric(shape, source)
        step += np.where(geometric, 0.0, 1.0 + self._geometric(shape, source))
        uniform = 2.0 * source.random(shape) - 1.0
        return np.asarray(self.period * (step + self.gamma) * uniform, dtype=np.float64)

    def _geometric(self, shape: int | Sequence[int], source: RandomSource) -> Array:
        squares = source.standard_normal(shape) ** 2
        squares += source.standard_normal(shape) ** 2
        return np.floor(squares / (2 * self.epsilon))
