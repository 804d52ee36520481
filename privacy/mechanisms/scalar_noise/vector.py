"""Scalar noise on numbers and vectors: what is released with the noise that `scalar_noise` describes.

The event of one number is `events.scalar_noise`, that of a vector clipped in L2 norm
`events.vector_noise`: independent noise on every coordinate, scaled by the norm.
"""

from __future__ import annotations

import math

import torch

from privacy.mechanisms.gaussian import grid_spacing
from privacy.mechanisms.scalar_noise import ScalarNoise
from privacy.randomness import RandomSource


def add_scalar_noise(
    vector: torch.Tensor, sensitivity: float, noise: ScalarNoise, rng: RandomSource
) -> torch.Tensor:
    """Return the vector plus independent noise of `noise.scaled(sensitivity)` on each coordinate.

    As in `gaussian.add_gaussian`, noise is drawn and added on the CPU in float64, whatever the device of the
    vector, and the sum is rounded to a grid, of spacing 2^-17 to 2^-16 of the noise's width (Laplace:
    its scale): post-processing, against attacks on the low-order bits.

    Guarantee: where `sensitivity` bounds the change of one number (a vector of one coordinate), that of
    `events.scalar_noise(noise)`; where it bounds the L2 change of a vector, that of
    `events.vector_noise(noise, dimension)`.

    Args:
      vector: Any shape, any floating dtype, finite.
      sensitivity: Finite and > 0, in the units of the vector.
      noise: In units of the sensitivity.
      rng: The stream to draw from.

    Returns:
      A new tensor of the same shape, dtype and device.

    Raises:
      ValueError: An argument is out of range, or the vector is not floating or not finite.
    """
    if not (math.isfinite(sensitivity) and sensitivity > 0):
        raise ValueError(f"Expected a finite sensitivity > 0, got sensitivity={sensitivity}")
    if not vector.is_floating_point():
        raise ValueError(f"Expected a floating-point vector, got dtype={vector.dtype}")
    exact = vector.detach().to(device="cpu", dtype=torch.float64)
    if not bool(torch.isfinite(exact).all()):
        raise ValueError("Expected a finite vector, got a vector with NaN or infinite entries")
    scaled = noise.scaled(sensitivity)
    spacing = grid_spacing(scaled.width)
    noisy = torch.from_numpy(scaled.sample(tuple(exact.shape), rng)).add_(exact)
    noisy.div_(spacing).round_().mul_(spacing)  # a power of two: only the rounding is inexact
    return noisy.to(device=vector.device, dtype=vector.dtype)
