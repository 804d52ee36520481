"""Exponential-power noise, exp(-|x / scale|^beta): Laplace at beta = 1, Gaussian at beta = 2.

Also called generalised Gaussian or Subbotin noise (Liu 2019, "Generalized Gaussian mechanism for
differential privacy"). Between 1 and 2 it weighs bounded losses of one release against light tails of
the sum of many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincc

from privacy.mechanisms.scalar_noise.base import Array, ScalarNoise, Shape, require_positive
from privacy.mechanisms.scalar_noise.gamma import standard_gamma
from privacy.randomness import RandomSource

SMALLEST_BETA, LARGEST_BETA = 0.1, 20.0
_FAR = 500.0  # argument above which the incomplete gamma function has its asymptotic series


@dataclass(frozen=True)
class ExponentialPowerNoise(ScalarNoise):
    """Density exp(-|x / scale|^beta) / (2 scale Gamma(1 + 1/beta)).

    Guarantee: for beta <= 1, (scale^-beta, 0)-DP for a number of sensitivity 1; for beta > 1 the loss
    is not bounded.

    Attributes:
      beta: Power of |x|, from 0.1 to 20.
      scale: In units of the sensitivity, > 0.
    """

    family = "exponential-power"

    beta: float
    scale: float

    def __post_init__(self) -> None:
        """Check the parameters."""
        require_positive("scale", self.scale)
        require_positive("beta", self.beta)
        if not SMALLEST_BETA <= self.beta <= LARGEST_BETA:
            raise ValueError(
                f"Expected {SMALLEST_BETA:g} <= beta <= {LARGEST_BETA:g}, got beta={self.beta}"
            )

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        """See `ScalarNoise`; -|x|^beta is concave on x > 0 from beta = 1 on."""
        return "log-concave" if self.beta >= 1 else "log-convex"

    def _power(self, x: npt.ArrayLike) -> Array:
        with np.errstate(over="ignore"):
            power: Array = (np.abs(np.asarray(x, dtype=np.float64)) / self.scale) ** self.beta
        return power

    def log_density(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`."""
        norm = math.log(2 * self.scale) + math.lgamma(1 + 1 / self.beta)
        return np.asarray(-self._power(x) - norm)

    def survival(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`: half an incomplete gamma function of 1/beta."""
        tail: Array = 0.5 * gammaincc(1 / self.beta, self._power(x))
        return np.where(np.asarray(x) >= 0, tail, 1 - tail)

    def log_survival(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`; without underflow (Gamma(a, t) ~ t^(a-1) e^-t (1 + (a-1)/t + ...))."""
        a, power = 1 / self.beta, self._power(x)
        near = np.minimum(power, _FAR)
        far = np.maximum(power, _FAR)
        series = (a - 1) / far * (1 + (a - 2) / far * (1 + (a - 3) / far * (1 + (a - 4) / far)))
        asymptotic = -far + (a - 1) * np.log(far) - math.lgamma(a) + np.log1p(series)
        right = np.where(power < _FAR, np.log(gammaincc(a, near)), asymptotic) - math.log(2)
        return np.where(np.asarray(x) >= 0, right, np.log1p(-np.exp(right)))

    @property
    def std(self) -> float:
        """See `ScalarNoise`: scale (Gamma(3/beta) / Gamma(1/beta))^(1/2)."""
        half = 0.5 * (math.lgamma(3 / self.beta) - math.lgamma(1 / self.beta))
        return self.scale * math.exp(half)

    @property
    def mean_abs(self) -> float:
        """See `ScalarNoise`: scale Gamma(2/beta) / Gamma(1/beta)."""
        return self.scale * math.exp(math.lgamma(2 / self.beta) - math.lgamma(1 / self.beta))

    @property
    def peak_score(self) -> float:
        """See `ScalarNoise`: the limit of beta x^(beta - 1) / scale^beta."""
        if self.beta < 1:
            return math.inf
        return 1 / self.scale if self.beta == 1 else 0.0

    def scaled(self, factor: float) -> ExponentialPowerNoise:
        """See `ScalarNoise`."""
        require_positive("factor", factor)
        return ExponentialPowerNoise(self.beta, self.scale * factor)

    def sample(self, shape: int | Sequence[int], source: RandomSource) -> Array:
        """See `ScalarNoise`.

        A density that falls from 0 is a mixture of uniform ones: x = scale v g^(1/beta), v uniform on
        (-1, 1) and g of the gamma distribution of shape 1 + 1/beta. Three draws or more a sample, so that
        the sampler cannot be inverted to find the noiseless value (compare `privacy.noise`).
        """
        power = standard_gamma(1 + 1 / self.beta, shape, source)
        uniform = 2.0 * source.random(shape) - 1.0
        return np.asarray(self.scale * uniform * power ** (1 / self.beta), dtype=np.float64)
