"""Laplace noise (Dwork, McSherry, Nissim and Smith 2006): pure privacy, eps = 1 / scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.mechanisms.scalar_noise.base import Array, ScalarNoise, require_positive
from privacy.randomness import RandomSource


def standard_laplace(shape: int | Sequence[int], source: RandomSource) -> Array:
    """Return independent Laplace samples of scale 1: N1 N2 + N3 N4 of four independent normals.

    The characteristic function of a product of two is (1 + t^2)^(-1/2). Four draws a sample, so that the
    sampler cannot be inverted to find the noiseless value (compare `privacy.noise`).
    """
    first = source.standard_normal(shape)
    first *= source.standard_normal(shape)
    second = source.standard_normal(shape)
    second *= source.standard_normal(shape)
    return np.asarray(first + second, dtype=np.float64)


@dataclass(frozen=True)
class LaplaceNoise(ScalarNoise):
    """Density exp(-|x| / scale) / (2 scale), scale > 0 in units of the sensitivity.

    Guarantee: (1 / scale, 0)-DP for a number of sensitivity 1.
    """

    family = "laplace"
    shape = "log-convex"

    scale: float

    def __post_init__(self) -> None:
        """Check the scale."""
        require_positive("scale", self.scale)

    def log_density(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`."""
        return np.asarray(-np.abs(x) / self.scale - math.log(2 * self.scale))

    def survival(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`."""
        tail = 0.5 * np.exp(-np.abs(x) / self.scale)
        return np.where(np.asarray(x) >= 0, tail, 1 - tail)

    def log_survival(self, x: npt.ArrayLike) -> Array:
        """See `ScalarNoise`; without underflow."""
        right = -np.abs(x) / self.scale - math.log(2)
        return np.where(np.asarray(x) >= 0, right, np.log1p(-np.exp(right)))

    @property
    def std(self) -> float:
        """See `ScalarNoise`."""
        return math.sqrt(2) * self.scale

    @property
    def mean_abs(self) -> float:
        """See `ScalarNoise`."""
        return self.scale

    @property
    def peak_score(self) -> float:
        """See `ScalarNoise`: 1 / scale, as everywhere."""
        return 1 / self.scale

    def scaled(self, factor: float) -> LaplaceNoise:
        """See `ScalarNoise`."""
        require_positive("factor", factor)
        return LaplaceNoise(self.scale * factor)

    def sample(self, shape: int | Sequence[int], source: RandomSource) -> Array:
        """See `ScalarNoise`."""
        return standard_laplace(shape, source) * self.scale
