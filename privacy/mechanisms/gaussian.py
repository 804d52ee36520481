"""Gaussian mechanism: the only place where Gaussian noise is scaled and drawn.

What is proven: in real arithmetic, for noise that no one else knows, `add_gaussian` is the Gaussian
mechanism, and the accounting is stated for that. Rounding its result is post-processing and costs
nothing.

What is mitigation, and not proven: floating-point numbers are not real. A sampler does not reach all
values, and the gaps tell the noiseless value (Mironov 2012, "On significance of the least significant
bits for differential privacy"); the precision of `value + noise` depends on how large the noise was,
and the low-order bits tell that (Haney et al. 2022, "Precision-based attacks and interval refining").
Two measures, both shown to stop such attacks by `python -m simulations.attacks.low_order_bits`:

* Each sample is the sum of four independent draws divided by two, in float64, which is again exactly
  Gaussian in real arithmetic (Holohan and Braghin 2021, "Secure random sampling in differential
  privacy", section 4; Opacus' secure mode does the same). The noiseless value can then not be found by
  inverting the sampler.
* The noisy value is rounded to a multiple of `grid_spacing(std)`, about 2^-16 of the noise's standard
  deviation, which does not depend on the data. The bits below it, whose pattern tells of the noise
  and of the value apart, do not leave. Where noise is likely, some 2^36 float64 numbers fall to one point of the
  grid; what the sampler misses of them moves the point's probability by little, but by how little is
  not proven.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from privacy.randomness import RandomSource

_DRAWS = 4
_GRID_BITS = 16
_SMALLEST = 2.0**-149  # float32's smallest positive number


def gaussian(size: int | Sequence[int], std: float, rng: RandomSource) -> npt.NDArray[np.float64]:
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


def grid_spacing(std: float) -> float:
    """Return the spacing of the grid for noisy values: a power of two, public like `std`.

    2^(floor(log2 std) - 16), between 2^-17 and 2^-16 of std, so that float32 holds every multiple up to
    128 std exactly, and the rounding adds less than 2^-35 of the noise's variance.

    Raises:
      ValueError: std is not positive and finite, or so small that the grid is below float64's range.
    """
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"Expected a finite std > 0, got std={std}")
    spacing = math.ldexp(1.0, math.frexp(std)[1] - 1 - _GRID_BITS)
    if spacing < _SMALLEST:
        raise ValueError(f"Expected std >= {_SMALLEST * 2**_GRID_BITS:g}, got std={std}")
    return spacing


def add_gaussian(
    vector: torch.Tensor,
    sensitivity: float,
    noise_multiplier: float,
    rng: RandomSource,
) -> torch.Tensor:
    """Return the vector plus Gaussian noise of scale noise_multiplier * sensitivity.

    The Gaussian mechanism: its event is `GaussianDpEvent(noise_multiplier)` when `sensitivity`
    bounds the L2 change of `vector` between neighbouring data sets. The noise is drawn and added on
    the CPU in float64, and the sum is rounded to a multiple of `grid_spacing(std)`; the rounding to
    the dtype of the vector comes after (float32 changes nothing below 128 std). Both are
    post-processing.

    Args:
      vector: Any shape, any floating dtype, finite. An all-zero vector (an empty Poisson batch) is
        noised like every other.
      sensitivity: L2 sensitivity, finite and > 0, in the units of the vector.
      noise_multiplier: Finite and >= 0. Zero adds no noise and guarantees nothing: the event is
        then `no_guarantee`.
      rng: The stream to draw from.

    Returns:
      A new tensor of the same shape, dtype and device; its entries are multiples of the grid.

    Raises:
      ValueError: An argument is out of range (the standard deviation too: it must not be so small
        that it is lost in float32, nor overflow), or the vector is not floating or not finite (no noise
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
    if noise_multiplier == 0:
        return vector.detach().clone()
    std = noise_multiplier * sensitivity
    spacing = grid_spacing(std)
    noisy = torch.from_numpy(gaussian(tuple(exact.shape), std, rng)).add_(exact)
    noisy.div_(spacing).round_().mul_(spacing)  # a power of two: only the rounding is inexact
    return noisy.to(device=vector.device, dtype=vector.dtype)
