"""Round real vectors to integers on a grid of step 2^exponent, and bound what one record moves them by.

The step is a power of two, so that dividing by it is exact in floating point and the integers are a function of the very
values that came in. Rounding is deterministic: stochastic rounding moves the vector by as much in the worst case, and its
smaller typical move costs either a retry or a failure probability, for nothing on a fine grid.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

LARGEST_ENTRY = 2**52
"""Entries are cut to this size: every integer up to it is a float64."""
EXPONENTS = range(-200, 101)
_UP = 1 + 2.0**-50


def _scaled(values: npt.ArrayLike, exponent: int) -> npt.NDArray[np.float64]:
    if exponent not in EXPONENTS:
        raise ValueError(f"Expected -200 <= exponent <= 100 of the grid, got exponent={exponent}")
    real = np.asarray(values)
    if real.dtype.kind != "f" or real.dtype.itemsize > 8:
        raise ValueError(f"Expected floating-point values, got dtype={real.dtype}")
    with np.errstate(over="ignore"):
        steps = np.nan_to_num(np.ldexp(real.astype(np.float64), -exponent), nan=0.0)
    return np.asarray(np.clip(steps, -LARGEST_ENTRY, LARGEST_ENTRY), dtype=np.float64)


def nearest(values: npt.ArrayLike, exponent: int) -> npt.NDArray[np.int64]:
    """Return the nearest multiples of the step, in steps, ties to even; entries beyond 2^52 steps are cut.

    For the sum of a silo's examples; `nearest_sensitivity` bounds what one example moves the result by. Total: NaN gives 0.

    Args:
      values: float16, float32 or float64 array of any shape.
      exponent: The step is 2^exponent, -200 to 100.

    Raises:
      ValueError: The exponent is out of range, or the values are not floats.
    """
    return np.rint(_scaled(values, exponent)).astype(np.int64)


def toward_zero(values: npt.ArrayLike, exponent: int) -> npt.NDArray[np.int64]:
    """Return the multiples of the step next to the values on the side of zero, in steps.

    For one contribution (an example's clipped gradient, or a silo's clipped update) before integers are added. No entry grows, so
    the L2 norm does not: `toward_zero_sensitivity`. Arguments and errors as of `nearest`.
    """
    return np.trunc(_scaled(values, exponent)).astype(np.int64)


def nearest_sensitivity(norm: float, exponent: int, dimension: int) -> float:
    """Return the L2 norm that `nearest` of two vectors differs by at most: norm / step + sqrt(dimension).

    Proof. Cutting entries brings no two closer values apart, and |rint(a) - rint(b)| <= |a - b| + 1 in each entry, a rounding error
    being at most 1/2. The triangle inequality adds the vector of ones, of norm sqrt(dimension). It is attained where all entries
    differ by the same whole number plus a little. (One vector alone would grow by sqrt(dimension) / 2; a difference has two errors.)

    Args:
      norm: L2 norm that the two real vectors differ by at most, as they are in memory, > 0.
      exponent: The step is 2^exponent.
      dimension: Number of entries, >= 1.

    Raises:
      ValueError: An argument is out of range.
    """
    if isinstance(dimension, bool) or dimension != int(dimension) or dimension < 1:
        raise ValueError(f"Expected a whole dimension >= 1, got dimension={dimension}")
    return (_steps(norm, exponent) + math.sqrt(dimension)) * _UP


def toward_zero_sensitivity(norm: float, exponent: int) -> float:
    """Return the L2 norm of `toward_zero` of a vector of at most this norm: norm / step, with nothing for rounding.

    So it is what a sum of such integer vectors moves by where one of them is added, removed or made zero; twice as much where it is
    replaced. At least 1: integers that move at all move by 1.

    Raises:
      ValueError: The norm is not from 1e-200 to 1e200, or the exponent is out of range.
    """
    return max(1.0, _steps(norm, exponent))


def _steps(norm: float, exponent: int) -> float:
    """Return norm / step."""
    if exponent not in EXPONENTS:
        raise ValueError(f"Expected -200 <= exponent <= 100 of the grid, got exponent={exponent}")
    if not 1e-200 <= norm <= 1e200:  # so that the power of two is exact
        raise ValueError(f"Expected a norm from 1e-200 to 1e200, got norm={norm}")
    return math.ldexp(norm, -exponent)


def to_real(integers: npt.NDArray[np.int64], exponent: int) -> npt.NDArray[np.float64]:
    """Return integers times the step; exact for entries up to 2^53."""
    return np.ldexp(integers.astype(np.float64), exponent)
