"""Gamma-distributed numbers from a `RandomSource` (Marsaglia and Tsang 2000, "A simple method")."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from privacy.mechanisms.scalar_noise.base import Array, require_positive
from privacy.randomness import RandomSource


def standard_gamma(k: float, shape: int | Sequence[int], source: RandomSource) -> Array:
    """Draw independent samples of the gamma distribution of shape k and scale 1.

    By rejection; a shape below 1 is that of k + 1 times u^(1/k), u uniform. How many draws a sample takes
    does not depend on the value that is kept.

    Args:
      k: The distribution's shape, finite and > 0.
      shape: The shape of the result.
      source: Where they are drawn from.

    Returns:
      A float64 array of that shape.

    Raises:
      ValueError: k is out of range.
    """
    require_positive("k", k)
    if k < 1:
        boost = (1.0 - source.random(shape)) ** (1 / k)
        return standard_gamma(k + 1, shape, source) * boost
    d = k - 1 / 3
    c = 1 / math.sqrt(9 * d)
    out: Array = np.empty(shape, dtype=np.float64)
    flat = out.reshape(-1)
    missing = np.arange(flat.size)
    while missing.size:
        normal = source.standard_normal(missing.size)
        cube = (1 + c * normal) ** 3
        uniform = 1.0 - source.random(missing.size)
        with np.errstate(invalid="ignore", divide="ignore"):
            bound = 0.5 * normal**2 + d * (1 - cube + np.log(cube))
        kept = (cube > 0) & (np.log(uniform) < bound)
        flat[missing[kept]] = d * cube[kept]
        missing = missing[~kept]
    return out
