"""Add integer vectors modulo 2^bits, as masks need it, and bound the chance that a sum wraps around.

Privacy does not depend on it: the sum modulo 2^bits is a function of the true sum, so it costs no more. A sum that wraps is wrong,
though. `largest_entry` leaves room for the noise, so that this has a probability below a bound that is proven.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.secure_sum.bound import check_shares
from privacy.secure_sum.grid import LARGEST_ENTRY

WRAP_PROBABILITY = 1e-30
"""Probability that a sum wraps, in any entry, at most."""
_DTYPES = {32: np.uint32, 64: np.uint64}
_SIGNED = {32: np.int32, 64: np.int64}
Ring = npt.NDArray[Any]  # uint32 or uint64


def _check_bits(bits: int) -> None:
    if bits not in _DTYPES:
        raise ValueError(f"Expected bits=32 or bits=64 of the ring, got bits={bits}")


def largest_entry(
    bits: int, silos: int, sigma: float, dimension: int, wrap_probability: float = WRAP_PROBABILITY
) -> int:
    """Return the largest size of an entry, before noise, with which the sum of all silos does not wrap.

    Proof. A discrete Gaussian X of parameter sigma is sub-Gaussian: E exp(u X) = exp(u^2 sigma^2 / 2) times the quotient of the sums of
    exp(-(x - u sigma^2)^2 / (2 sigma^2)) and of exp(-x^2 / (2 sigma^2)) over the integers, at most 1 by Poisson summation (Canonne, Kamath and
    Steinke 2020, lemma 8). So the noise of an entry of the sum of n silos, or of fewer, exceeds T in size with probability at most
    2 exp(-T^2 / (2 n sigma^2)); T is chosen so that this, times the dimension, is at most wrap_probability. Otherwise the sum is at most
    n * largest_entry + T <= 2^(bits - 1) - 1 in size.

    Args:
      bits: 32 or 64.
      silos: n, the number of silos that may be in the sum, >= 1.
      sigma: Parameter of one silo's share of the noise.
      dimension: Number of entries, >= 1.
      wrap_probability: From 1e-300 to 1e-3.

    Raises:
      ValueError: A value is out of range, or no room is left.
    """
    _check_bits(bits)
    check_shares(sigma, silos, 1.0)
    if dimension < 1 or not 1e-300 <= wrap_probability <= 1e-3:
        raise ValueError(
            "Expected dimension >= 1 and 1e-300 <= wrap_probability <= 1e-3, got "
            f"dimension={dimension}, wrap_probability={wrap_probability}"
        )
    log_tail = math.log(2) + math.log(dimension) - math.log(wrap_probability)
    tail = math.ceil(sigma * math.sqrt(2 * silos * log_tail) * (1 + 1e-12)) + 1
    room = (int(2 ** (bits - 1)) - 1 - tail) // silos
    if room < 1:
        raise ValueError(
            f"Expected a ring with room for the noise, got bits={bits}, sigma={sigma:g}, silos={silos}"
        )
    return min(room, LARGEST_ENTRY)


def encode(
    integers: npt.NDArray[np.int64], noise: npt.NDArray[np.int64], largest: int, bits: int
) -> Ring:
    """Return a silo's integers, cut to +-largest, plus its share of the noise, modulo 2^bits.

    Cutting acts on each entry alone and brings no two values further apart, so the sensitivity stays.

    Args:
      integers: int64 vector, of `privacy.secure_sum.grid`.
      noise: int64 of the same shape, drawn for this release alone.
      largest: `largest_entry` of this ring.
      bits: 32 or 64.

    Returns:
      uint32 or uint64 of the same shape.

    Raises:
      ValueError: The shapes or types differ from these, or bits is neither.
    """
    _check_bits(bits)
    if integers.shape != noise.shape or {integers.dtype, noise.dtype} != {np.dtype(np.int64)}:
        raise ValueError(
            "Expected integers and noise of one shape and of dtype int64, got "
            f"{integers.shape} {integers.dtype} and {noise.shape} {noise.dtype}"
        )
    return (np.clip(integers, -largest, largest) + noise).astype(_DTYPES[bits])


def add(parts: Iterable[Ring]) -> Ring:
    """Return the sum of ring vectors, modulo the ring's 2^bits; ValueError for none, or of several rings."""
    listed = list(parts)
    if not listed or len({(part.dtype, part.shape) for part in listed}) != 1:
        raise ValueError("Expected at least one vector, all of one ring and shape")
    total = listed[0].copy()
    for part in listed[1:]:
        total += part
    return total


def decode(total: Ring, bits: int) -> npt.NDArray[np.int64]:
    """Return the integers from -2^(bits - 1) to 2^(bits - 1) - 1 that a ring vector stands for."""
    _check_bits(bits)
    if total.dtype != _DTYPES[bits]:
        raise ValueError(f"Expected a vector of uint{bits}, got dtype={total.dtype}")
    return total.view(_SIGNED[bits]).astype(np.int64)
