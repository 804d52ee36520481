"""Fisher information of the location of scalar noise: what many small changes cost in the limit."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from scipy.integrate import quad

from privacy.mechanisms.scalar_noise.base import ScalarNoise

_STEP = 1e-4  # of ln x, for the derivative of ln f; the error is of order _STEP^2
_NEAR = 1e-5  # widths: the score is taken as constant below


@lru_cache(maxsize=256)
def fisher_information(noise: ScalarNoise) -> float:
    """Return I = int (f')^2 / f; infinite for a density with jumps. Relative error about 1e-7.

    A vector with independent noise on each of d coordinates, moved by 1 / sqrt(d) in every one, tends to
    Gaussian differential privacy with mu = sqrt(I) (Dong, Roth and Su 2022, "Gaussian differential
    privacy", section 3: the central limit of composition). For a scale mixture of Laplace noise
    I = E[(E[u | x])^2].

    Raises:
      ValueError: The information is not finite for a reason other than jumps (a density that is
        too sharp at 0).
    """
    if noise.shape == "steps":
        return math.inf
    width = noise.width

    def integrand(log_x: float) -> float:
        x = math.exp(log_x)
        near, far = noise.log_density([x * math.exp(-_STEP), x * math.exp(_STEP)])
        slope = float(far - near) / (2 * _STEP)  # x f'/f
        return slope**2 * math.exp(float(noise.log_density(x)) - log_x)

    low = math.log(_NEAR * width)
    cuts = [low, *(math.log(width) + step for step in (-7, -4, -2, -1, 0, 1, 2, 3, 5, 8, 14, 40))]
    total = math.fsum(
        quad(integrand, a, b, epsrel=1e-10, limit=400)[0] for a, b in itertools.pairwise(cuts)
    )
    total += integrand(low)  # of [0, _NEAR width]: constant score there, dx = x dln x
    if integrand(low) > 1e-2 * total:
        raise ValueError(f"Expected noise of finite Fisher information, got {noise!r}")
    return 2 * total
