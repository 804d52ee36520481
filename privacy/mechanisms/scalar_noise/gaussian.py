"""Gaussian noise as one family among others, for comparison and search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr

from privacy.mechanisms.gaussian import gaussian
from privacy.mechanisms.scalar_noise.base import Array, ScalarNoise, require_positive
from privacy.randomness import RandomSource


@dataclass(frozen=True)
class GaussianNoise(ScalarNoise):
    """N(0, sigma^2), sigma > 0 in units of the sensitivity."""

    family = "gaussian"
    shape = "log-concave"

    sigma: float

    def __post_init__(self) -> None:
        """Check sigma."""
        require_positive("sigma", self.sigma)

    def log_density(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`."""
        z = np.asarray(x, dtype=np.float64) / self.sigma
        return np.asarray(-0.5 * z**2 - math.log(self.sigma) - 0.5 * math.log(2 * math.pi))

    def survival(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`."""
        return np.asarray(ndtr(-np.asarray(x, dtype=np.float64) / self.sigma))

    def log_survival(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`; without underflow."""
        return np.asarray(log_ndtr(-np.asarray(x, dtype=np.float64) / self.sigma))

    @property
    def std(self) -> float:
        """See `ScalarNoise`."""
        return self.sigma

    @property
    def mean_abs(self) -> float:
        """See `ScalarNoise`."""
        return self.sigma * math.sqrt(2 / math.pi)

    @property
    def peak_score(self) -> float:
        """See `ScalarNoise`."""
        return 0.0

    def scaled(self, factor: float) -> GaussianNoise:
        """See `ScalarNoise`."""
        require_positive("factor", factor)
        return GaussianNoise(self.sigma * factor)

    def sample(self, shape: int | Sequence[int], source: RandomSource) -> Array:
        """See `ScalarNoise`; by `privacy.mechanisms.gaussian.gaussian`."""
        return gaussian(shape, self.sigma, source)
