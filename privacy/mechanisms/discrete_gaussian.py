"""Draw discrete Gaussian noise for integers exactly, without floating point.

The distribution has P[X = x] proportional to exp(-x^2 / (2 sigma^2)) on the integers. Counts stay
integers, so the attacks on floating-point noise (Mironov 2012) have nothing to read, and the privacy
statement is one about the numbers that are really released.

Canonne, Kamath and Steinke 2020, "The discrete Gaussian for differential privacy" (arXiv
2004.00010), algorithms 1 to 3: every random choice is a comparison of a uniform integer with an
integer, and sigma^2 is a fraction. Many samples are drawn at once; a number that could exceed 62
bits is computed with Python's integers. The time that a sample takes depends on its value.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.randomness import RandomSource

Integers = npt.NDArray[Any]  # int64, or objects: Python's integers
_SAFE_BITS = 62
_SMALLEST_SIGMA, _LARGEST_SIGMA = Fraction(1, 2**20), Fraction(2**40)
LARGEST_WHOLE_SIGMA = 2**25
"""Largest parameter of `whole_discrete_gaussian`: its numbers stay below 2^62 up to 40 sigma."""


def _uniform(bound: int, size: int, rng: RandomSource) -> Integers:
    """Draw uniform integers from 0 to bound - 1 by rejection; int64 if bound fits, else objects."""
    bits = (bound - 1).bit_length()
    words = max(1, -(-bits // 64))
    result: Integers = np.zeros(size, dtype=np.int64 if bits <= _SAFE_BITS else object)
    missing = np.arange(size if bits else 0)
    while missing.size:
        raw = np.frombuffer(rng.bytes(8 * words * missing.size), dtype="<u8")
        drawn: Integers
        if bits <= _SAFE_BITS:
            drawn = (raw >> np.uint64(64 - bits)).astype(np.int64)
        else:
            drawn = np.zeros(missing.size, dtype=object)
            for column in raw.reshape(missing.size, words).T:
                drawn = drawn * 2**64 + column.astype(object)
            drawn = drawn // 2 ** (64 * words - bits)
        kept = (drawn < bound).astype(bool)
        result[missing[kept]] = drawn[kept]
        missing = missing[~kept]
    return result


def uniform_below(bound: int, rng: RandomSource) -> int:
    """Draw one uniform integer from 0 to bound - 1; bound >= 1."""
    return int(_uniform(bound, 1, rng)[0])


def bernoulli_exp(exponent: Fraction, rng: RandomSource) -> bool:
    """Return True with probability exp(-exponent), exactly; exponent >= 0 (algorithm 1)."""
    numerator = np.array([exponent.numerator], dtype=object)
    return bool(_bernoulli_exp_any(numerator, exponent.denominator, rng)[0])


def _bernoulli_exp(
    numerators: Integers, denominator: int, rng: RandomSource
) -> npt.NDArray[np.bool]:
    """Return True with probability exp(-n / denominator), each 0 <= n <= denominator (algorithm 1)."""
    result = np.zeros(numerators.size, dtype=bool)
    active = np.arange(numerators.size)
    k = 1
    while active.size:
        goes_on = _uniform(denominator * k, active.size, rng) < numerators[active]
        goes_on = goes_on.astype(bool)
        result[active[~goes_on]] = k % 2 == 1  # it stopped at k: true if k is odd
        active = active[goes_on]
        k += 1
    return result


def _bernoulli_exp_any(
    numerators: Integers, denominator: int, rng: RandomSource
) -> npt.NDArray[np.bool]:
    """Return True with probability exp(-n / denominator), each n >= 0 (algorithm 1, second part)."""
    whole, rest = numerators // denominator, numerators % denominator
    alive = _bernoulli_exp(rest, denominator, rng)
    while True:
        active = np.flatnonzero(alive & (whole > 0).astype(bool))
        if not active.size:
            return alive
        alive[active] = _bernoulli_exp(np.ones(active.size, dtype=np.int64), 1, rng)
        whole[active] -= 1


def _discrete_laplace(scale: int, size: int, rng: RandomSource) -> Integers:
    """Return the integers with P[x] proportional to exp(-|x| / scale), a whole scale >= 1 (algorithm 2)."""
    found: list[Integers] = []
    missing = size
    while missing:
        low = _uniform(scale, 2 * missing + 8, rng)
        low = low[_bernoulli_exp(low, scale, rng)]
        # Geometric: how often a coin of probability exp(-1) falls true before it falls false.
        high = np.zeros(low.size, dtype=np.int64)
        active = np.arange(low.size)
        while active.size:
            active = active[_bernoulli_exp(np.ones(active.size, dtype=np.int64), 1, rng)]
            high[active] += 1
        value = low + scale * high
        negative = _uniform(2, value.size, rng) == 1
        kept = ~(negative & (value == 0))
        part = np.where(negative, -value, value)[kept][:missing]
        found.append(part)
        missing -= part.size
    return np.concatenate([np.zeros(0, dtype=np.int64), *found])


def _variance(sigma: float | int | Fraction) -> Fraction:
    """Return sigma^2 as an exact fraction of the float's exact value.

    Raises:
      ValueError: sigma is not a finite number from 2^-20 to 2^40.
    """
    if isinstance(sigma, bool) or not math.isfinite(sigma):
        raise ValueError(f"Expected a finite sigma > 0, got sigma={sigma}")
    exact = Fraction(sigma)
    if not _SMALLEST_SIGMA <= exact <= _LARGEST_SIGMA:
        raise ValueError(f"Expected 2^-20 <= sigma <= 2^40, got sigma={sigma}")
    return exact * exact


def discrete_gaussian(
    size: int, sigma: float | int | Fraction, rng: RandomSource
) -> npt.NDArray[np.int64]:
    """Draw independent samples of the discrete Gaussian, exactly.

    Args:
      size: Number of samples, >= 0.
      sigma: The parameter, from 2^-20 to 2^40; the standard deviation is at most sigma, and within
        1e-7 of it for sigma >= 1. A float is taken as the fraction that it stands for. Short
        fractions, such as 20 or 28.25, are drawn some 20 times as fast as others.
      rng: Where uniform bytes come from.

    Returns:
      An int64 array of shape (size,).

    Raises:
      ValueError: size or sigma is out of range.
    """
    if isinstance(size, bool) or size != int(size) or size < 0:
        raise ValueError(f"Expected a whole size >= 0, got size={size}")
    variance = _variance(sigma)
    n, d = variance.numerator, variance.denominator
    scale = math.isqrt(n // d) + 1  # floor(sigma) + 1
    # Accepted with probability exp(-(|y| - sigma^2 / scale)^2 / (2 sigma^2)).
    denominator = 2 * n * d * scale**2
    found: list[npt.NDArray[np.int64]] = []
    missing = int(size)
    while missing:
        values = _discrete_laplace(scale, 2 * missing + 8, rng)
        size_of = np.abs(values)
        largest = max((int(size_of.max()) * scale * d + n) ** 2, denominator)
        if largest.bit_length() > _SAFE_BITS:
            size_of = size_of.astype(object)
        numerators = (size_of * (scale * d) - n) ** 2
        kept = values[_bernoulli_exp_any(numerators, denominator, rng)][:missing]
        found.append(kept.astype(np.int64))
        missing -= kept.size
    return np.concatenate([np.zeros(0, dtype=np.int64), *found])


def whole_discrete_gaussian(size: int, sigma: int, rng: RandomSource) -> npt.NDArray[np.int64]:
    """Draw independent samples of the discrete Gaussian of a whole parameter, exactly and fast at any of them.

    Algorithm 3 with the discrete Laplace distribution of scale sigma, in place of floor(sigma) + 1: it holds for every whole scale. A
    proposal y is then accepted with probability exp(-(|y| - sigma)^2 / (2 sigma^2)), a fraction of small numbers.

    Args:
      size: Number of samples, >= 0.
      sigma: Whole, 1 to 2^25.
      rng: Where uniform bytes come from.

    Returns:
      An int64 array of shape (size,).

    Raises:
      ValueError: size or sigma is out of range.
    """
    if isinstance(size, bool) or size != int(size) or size < 0:
        raise ValueError(f"Expected a whole size >= 0, got size={size}")
    if isinstance(sigma, bool) or sigma != int(sigma) or not 1 <= sigma <= LARGEST_WHOLE_SIGMA:
        raise ValueError(f"Expected a whole sigma from 1 to 2^25, got sigma={sigma}")
    scale = int(sigma)
    found = [np.zeros(0, dtype=np.int64)]
    missing = int(size)
    while missing:
        values = _discrete_laplace(scale, 2 * missing + 8, rng)
        distance = np.abs(values) - scale
        if int(np.abs(distance).max()).bit_length() > _SAFE_BITS // 2:
            distance = distance.astype(object)
        accepted = _bernoulli_exp_any(distance**2, 2 * scale**2, rng)
        kept = values[accepted][:missing]
        found.append(kept.astype(np.int64))
        missing -= kept.size
    return np.concatenate(found)


def add_discrete_gaussian(
    counts: npt.ArrayLike,
    sensitivity: int,
    noise_multiplier: float | int | Fraction,
    rng: RandomSource,
) -> npt.NDArray[np.int64]:
    """Return whole numbers plus independent discrete Gaussian noise, as whole numbers.

    Each number has sigma = noise_multiplier * sensitivity, and is one event
    `DiscreteGaussianDpEvent(sigma, sensitivity)`: where one record may change several numbers, each
    by at most `sensitivity`, the events of all of them compose. The results may be negative; to
    clamp them would be post-processing, but would bias their sum.

    Args:
      counts: Integers of any shape, each below 2^62 in size.
      sensitivity: The most that one record changes any one number by; whole, >= 1.
      noise_multiplier: > 0; sigma in units of the sensitivity.
      rng: Where uniform bytes come from.

    Returns:
      A new int64 array of the same shape.

    Raises:
      ValueError: An argument is out of range, or the counts are not integers.
    """
    exact = np.asarray(counts)
    if exact.dtype.kind not in "iu":
        raise ValueError(f"Expected counts of an integer dtype, got dtype={exact.dtype}")
    if exact.size and int(np.abs(exact.astype(object)).max()) >= 2**62:
        raise ValueError("Expected counts below 2^62 in size, got a larger one")
    if isinstance(sensitivity, bool) or sensitivity != int(sensitivity) or sensitivity < 1:
        raise ValueError(f"Expected a whole sensitivity >= 1, got sensitivity={sensitivity}")
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(
            f"Expected a finite noise_multiplier > 0, got noise_multiplier={noise_multiplier}"
        )
    # The same product that the event is made with, so that both have the very same sigma.
    noise = discrete_gaussian(exact.size, noise_multiplier * int(sensitivity), rng)
    return np.asarray(exact.astype(np.int64) + noise.reshape(exact.shape), dtype=np.int64)
