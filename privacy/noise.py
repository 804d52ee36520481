"""Gaussian noise: the only place where a noise scale is made and noise is drawn.

Floating point. A double-precision Gaussian sample does not take all values, and the gaps reveal
the noiseless value (Mironov 2012, "On significance of the least significant bits for differential
privacy"). As a mitigation every sample here is the sum of four independent draws divided by two
(Holohan and Braghin 2021, "Secure random sampling in differential privacy", section 4), which is
again exactly Gaussian in real arithmetic and makes the attack infeasible. It is a mitigation, not a
proof: the accounting is stated for real arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

_DRAWS = 4


def gaussian(
    size: int | Sequence[int], std: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw independent N(0, std^2) samples.

    Args:
      size: The shape of the result.
      std: The standard deviation, finite and >= 0.
      rng: The stream to draw from; each sample takes four draws.

    Returns:
      A float64 array of that shape.

    Raises:
      ValueError: std is negative, infinite or NaN.
    """
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"Expected a finite std >= 0, got std={std}")
    total = rng.standard_normal(size)
    for _ in range(_DRAWS - 1):
        total += rng.standard_normal(size)
    total *= std / math.sqrt(_DRAWS)
    return np.asarray(total, dtype=np.float64)


def add_gaussian(
    vector: torch.Tensor,
    sensitivity: float,
    noise_multiplier: float,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Return the vector plus Gaussian noise of scale noise_multiplier * sensitivity.

    The Gaussian mechanism: its event is `GaussianDpEvent(noise_multiplier)` when `sensitivity`
    bounds the L2 change of `vector` between neighbouring data sets. The noise is drawn and added in
    float64; the rounding to the dtype of the vector comes after, and is post-processing.

    Args:
      vector: Any shape, any floating dtype, finite. An all-zero vector (an empty Poisson batch) is
        noised like every other.
      sensitivity: L2 sensitivity, finite and > 0, in the units of the vector.
      noise_multiplier: Finite and >= 0. Zero adds no noise and guarantees nothing: the event is
        then `no_guarantee`.
      rng: The stream to draw from.

    Returns:
      A new tensor of the same shape, dtype and device.

    Raises:
      ValueError: An argument is out of range, or the vector is not floating or not finite (no noise
        would hide a NaN).
    """
    if not (math.isfinite(sensitivity) and sensitivity > 0):
        raise ValueError(f"Expected a finite sensitivity > 0, got sensitivity={sensitivity}")
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise ValueError(
            f"Expected a finite noise_multiplier >= 0, got noise_multiplier={noise_multiplier}"
        )
    if not vector.is_floating_point():
        raise ValueError(f"Expected a floating-point vector, got dtype={vector.dtype}")
    exact = vector.detach().to(device="cpu", dtype=torch.float64)
    if not bool(torch.isfinite(exact).all()):
        raise ValueError("Expected a finite vector, got a vector with NaN or infinite entries")
    noise = gaussian(tuple(exact.shape), noise_multiplier * sensitivity, rng)
    noisy = exact + torch.from_numpy(noise).reshape(exact.shape)
    return noisy.to(device=vector.device, dtype=vector.dtype)
