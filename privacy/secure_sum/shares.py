"""Size each silo's share of the noise, so that the shares of honest silos alone suffice; draw it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from privacy.mechanisms.discrete_gaussian import LARGEST_WHOLE_SIGMA, whole_discrete_gaussian
from privacy.randomness import RandomSource
from privacy.secure_sum import bound, grid, ring


@cache
def most_missing(silos: int, dropouts: int, colluding: int) -> int:
    """Return how many honest silos a malicious server can leave out of a sum that it learns, at most.

    At least `dropouts`, and no more where silos - colluding > dropouts^2 + dropouts + 1. Without drop-outs 0.

    The protocol (`fedllm.secure`, after Bonawitz et al. 2017). n silos, m of them the server's, N = n - m honest; t may drop out, and
    k = n - t shares restore a secret. For each session a silo j has two secrets in shares: the seed b_j of its self-mask and the key s_j of
    its pairwise masks. An honest silo i is told once which silos advanced, A_i (itself among them, |A_i| >= k), masks its vector once, and
    is told once which silos answered, U_i (a subset of A_i, |U_i| >= k). It then reveals its shares of b_j for j in U_i, and of s_j for j in
    D_i = A_i - U_i. The server may tell every silo other sets.

    Each silo's vector is in one sum at most. The server holds m shares of every secret, so it learns b_j only if k - m = N - t honest silos
    have j in U_i, and s_j only if as many have j in D_i. No silo does both, and 2 (N - t) > N as 2 t < N: never both secrets. A vector whose
    b_j is hidden is uniform. Let b_j be known, and j have been told A. Its masks that are shared with an honest silo of A cancel only in
    the sum over all silos that were told A (A is in the derivation of masks), and can be taken away only if s of the other silo is known.
    So what is learned is one sum for each A, over the honest silos G that were told A and whose b is known; nothing if an honest silo of A
    is neither in G nor of a known s.

    Size of G. Honest silos outside G are e silos outside A and x silos of A with a known s: |G| = N - e - x, and |A| <= n - e. A silo i of G
    has |D_i| <= |A| - k <= t - e, any other |D_i| <= t, and each has at most x of the x silos in D_i. Each of the x is in N - t sets D_i. So

        x (N - t) <= (N - e - x) min(x, t - e) + (e + x) min(x, t),   0 <= e <= t.

    The largest e + x < N of which this holds is returned. It is attained: where the inequality holds, sets D_i of these sizes exist that
    have each of the x silos in N - t of them (deal the places round), and all of them leave G to U_i.

    Closed form, for t >= 1 and N >= 3 t: e + x = t + s with the largest s <= t of which s (N - t - s) <= t^2. (For s >= 1 and x <= t the
    inequality is N s <= t x + s (t + s), largest at x = t, e = s; x > t means e < s, and N <= t + e + t^2 / s.) It is s = 0 where
    N - t - 1 > t^2. The simpler bound s <= t^2 / (N - 2 t) holds too.

    Raises:
      ValueError: A number is negative, or 2 * dropouts >= silos - colluding.
    """
    honest = silos - colluding
    if min(dropouts, colluding) < 0 or 2 * dropouts >= honest:
        raise ValueError(
            "Expected dropouts >= 0, colluding >= 0 and 2 * dropouts < silos - colluding, got "
            f"silos={silos}, dropouts={dropouts}, colluding={colluding}"
        )
    limit = min(honest - 1, dropouts + dropouts**2 // (honest - 2 * dropouts))
    for missing in range(limit, dropouts, -1):
        for outside in range(dropouts + 1):
            keyless = missing - outside
            opened = (honest - missing) * min(keyless, dropouts - outside)
            opened += missing * min(keyless, dropouts)
            if keyless * (honest - dropouts) <= opened:
                return missing
    return dropouts


def honest_shares(silos: int, dropouts: int, colluding: int) -> int:
    """Return the number of shares that are in every sum the server can learn and that it does not know.

    The colluding silos tell the server their shares; `most_missing` honest ones it can leave out, although it follows no rule.

    Raises:
      ValueError: A number is negative, or 2 * dropouts >= silos - colluding.
    """
    return silos - colluding - most_missing(silos, dropouts, colluding)


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
