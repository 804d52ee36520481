"""Size each silo's share of the noise, so that the shares of honest silos alone suffice; draw it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.mechanisms.discrete_gaussian import LARGEST_WHOLE_SIGMA, whole_discrete_gaussian
from privacy.randomness import RandomSource
from privacy.secure_sum import bound, grid, ring


def honest_shares(silos: int, dropouts: int, colluding: int) -> int:
    """Return the number of shares that are in the sum and unknown to the adversary: silos - dropouts - colluding.

    At most `dropouts` silos do not answer, and at most `colluding` of those that do tell the server their share.

    Raises:
      ValueError: A number is negative, or nobody's noise is left.
    """
    if min(dropouts, colluding) < 0 or silos - dropouts - colluding < 1:
        raise ValueError(
            "Expected dropouts >= 0, colluding >= 0 and dropouts + colluding < silos, got "
            f"silos={silos}, dropouts={dropouts}, colluding={colluding}"
        )
    return silos - dropouts - colluding


def share_sigma(noise_multiplier: float, sensitivity: float, honest: int) -> int:
    """Return the smallest whole parameter of a share, such that `honest` of them cost no more than a Gaussian.

    Whole, since such a share is drawn fastest; on a fine grid it is large, and rounding it up costs nothing.

    Args:
      noise_multiplier: Of the Gaussian mechanism that calibration found, > 0.
      sensitivity: L2 norm that one record moves the integers by, in steps of the grid.
      honest: `honest_shares`, against the adversary that calibration was for.

    Raises:
      ValueError: A value is out of range, or the share would be beyond 2^25.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(
            f"Expected a finite noise_multiplier > 0, got noise_multiplier={noise_multiplier}"
        )
    bound.check_shares(bound.SMALLEST_SIGMA, honest, sensitivity)
    least = noise_multiplier * sensitivity / math.sqrt(honest)
    sigma = max(int(bound.SMALLEST_SIGMA), math.floor(min(least, LARGEST_WHOLE_SIGMA)))
    while bound.noise_multiplier(sigma, honest, sensitivity) < noise_multiplier:
        sigma += 1
        if sigma > LARGEST_WHOLE_SIGMA:
            raise ValueError(
                f"Expected a share of sigma <= 2^25 steps, got sigma={least:g} (take a coarser grid)"
            )
    return sigma


def draw_share(size: int, sigma: int, rng: RandomSource) -> npt.NDArray[np.int64]:
    """Draw one silo's share: `size` independent discrete Gaussians, exactly.

    Args:
      size: Number of entries, >= 0.
      sigma: Whole, `share_sigma`.
      rng: The silo's own secret source, such as `privacy.randomness.generator(None)`.

    Returns:
      int64 [size].

    Raises:
      ValueError: size or sigma is out of range.
    """
    return whole_discrete_gaussian(size, sigma, rng)


@dataclass(frozen=True)
class SharePlan:
    """Numbers that all silos of a sum agree on before it.

    Attributes:
      exponent: The grid's step is 2^exponent.
      sensitivity: L2 norm, in steps, that one record moves a silo's rounded sum by at most.
      sigma: Parameter of one silo's share, in steps.
      largest: Entries are cut to this size before the noise, in steps.
      bits: Sums are taken modulo 2^bits.
      honest: Number of shares that the noise multiplier was divided among.
    """

    exponent: int
    sensitivity: float
    sigma: int
    largest: int
    bits: int
    honest: int


def plan_shares(
    noise_multiplier: float,
    norm: float,
    dimension: int,
    silos: int,
    *,
    dropouts: int = 0,
    colluding: int = 0,
    bits: int = 64,
    overhead: float = 0.005,
) -> SharePlan:
    """Choose the coarsest grid on which rounding adds little, and the share of the noise on it.

    For sums that are rounded to nearest (`grid.nearest`).

    Args:
      noise_multiplier: Of the sum that the adversary with `colluding` silos sees, > 0.
      norm: L2 norm that one record moves a silo's real vector by at most (the clipping norm), > 0.
      dimension: Number of entries, >= 1.
      silos, dropouts, colluding: As of `honest_shares`.
      bits: 32 or 64.
      overhead: Largest growth of the sensitivity by rounding, and of the share by making it whole, relative; 2^-20 to 1.

    Raises:
      ValueError: A value is out of range, or the ring has no room for the clipping norm.
    """
    if not 2.0**-20 <= overhead <= 1:
        raise ValueError(f"Expected 2^-20 <= overhead <= 1, got overhead={overhead}")
    honest = honest_shares(silos, dropouts, colluding)
    grid.nearest_sensitivity(norm, 0, dimension)  # checks both
    exponent = math.floor(math.log2(overhead * norm / math.sqrt(dimension)))
    smallest = max(bound.SMALLEST_SIGMA, 1 / overhead)
    while True:
        sensitivity = grid.nearest_sensitivity(norm, exponent, dimension)
        sigma = share_sigma(noise_multiplier, sensitivity, honest)
        if sigma >= smallest:
            break
        exponent -= 1
    largest = ring.largest_entry(bits, silos, sigma, dimension)
    if largest < math.ldexp(norm, -exponent) + 1:
        raise ValueError(
            f"Expected a ring with room for norm={norm:g} on the grid 2^{exponent}, got bits={bits}"
        )
    return SharePlan(exponent, sensitivity, sigma, largest, bits, honest)
