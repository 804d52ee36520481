"""The truncated normal: its tilted mass and mean without cancellation, and its quantiles."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erfcx, log_ndtr, ndtri_exp

from privacy.mechanisms.scalar_noise.base import Array

_SIDE = 2.0  # an interval this far from the tilted mean is written from its near end
_ASYMPTOTIC = 100.0


def tilted_normal(low: float, high: float, tilt: Array) -> tuple[Array, Array]:
    """Return ln E exp(tilt y), and the tilted mean E[y exp(tilt y)] / E exp(tilt y), of y = z - low >= 0.

    Args:
      low, high: z is N(0, 1) given low <= z <= high.
      tilt: Any shape, any size and sign: tilted, z is N(tilt, 1) given the same.
    """
    base = float(_log_interval(np.asarray(low), np.asarray(high)))
    right = low - tilt >= _SIDE
    left = (high - tilt <= -_SIDE) & ~right
    middle = np.where(right | left, 0.0, tilt)
    log_mass = _log_interval(low - middle, high - middle)
    with np.errstate(under="ignore"):
        density = [
            np.exp(-0.5 * end**2 - 0.5 * math.log(2 * math.pi) - log_mass)
            for end in (low - middle, high - middle)
        ]
    log_mgf = 0.5 * middle**2 + log_mass - middle * low
    mean = middle + density[0] - density[1] - low
    if np.any(right):
        found = _from_near_end(low, high, np.where(right, tilt, low - _SIDE))
        log_mgf = np.where(right, found[0], log_mgf)
        mean = np.where(right, found[1], mean)
    if np.any(left):  # mirrored: the distance from the high end
        found = _from_near_end(-high, -low, np.where(left, -tilt, -high - _SIDE))
        log_mgf = np.where(left, found[0] + tilt * (high - low), log_mgf)
        mean = np.where(left, high - low - found[1], mean)
    return np.asarray(log_mgf - base), np.asarray(np.clip(mean, 0.0, high - low))


def _from_near_end(low: float, high: float, tilt: Array) -> tuple[Array, Array]:
    """Return the same where low - tilt >= 2, the mass not divided by the untilted one.

    With a = low - tilt, b = high - tilt, Mills' ratio R, and E = phi(b) / phi(a), the tilted mass is
    phi(low) (R(a) - E R(b)); with g(a) = 1 / R(a) - a the tilted mean is (R(a) g(a) - E R(b) (g(b) + b -
    a)) / (R(a) - E R(b)).
    """
    a, b = low - tilt, high - tilt
    ratio = np.exp(np.minimum(0.5 * (low**2 - high**2) + (high - low) * tilt, 0.0))
    near, far = _mills(a), ratio * _mills(b)
    mass = near - far
    log_mass = -0.5 * low**2 - 0.5 * math.log(2 * math.pi) + np.log(mass)
    over = (near * _excess(a) - far * (_excess(b) + (high - low))) / mass
    return log_mass, over


def _mills(x: Array) -> Array:
    """Return (1 - Phi(x)) / phi(x)."""
    return np.asarray(math.sqrt(math.pi / 2) * erfcx(x / math.sqrt(2)))


def _excess(x: Array) -> Array:
    """Return the mean of z - x given z > x: 1 / R(x) - x, x > 0."""
    safe = np.minimum(x, _ASYMPTOTIC)
    far = np.clip(x, _ASYMPTOTIC, 1e150)
    square = 1 / far**2
    series = (1 - square * (2 - square * (10 - square * 74))) / far
    return np.where(x < _ASYMPTOTIC, 1 / _mills(safe) - safe, series)


def _log_interval(low: Array, high: Array) -> Array:
    """Return ln of the mass of N(0, 1) between low and high, from the side where it is accurate."""
    flip = low > 0
    lower, upper = np.where(flip, -high, low), np.where(flip, -low, high)
    top = log_ndtr(upper)
    return np.asarray(top + np.log(-np.expm1(np.minimum(log_ndtr(lower) - top, -1e-300))))


def truncated_quantile(low: float, high: float, probability: Array) -> Array:
    """Return the samples of N(0, 1) given low <= z <= high, from uniform 0 < probability < 1.

    The quantile of that probability, or, for low > 0, of one minus it (distributed the same): on the
    side where the tail is accurate.
    """
    if low > 0:
        return -truncated_quantile(-high, -low, probability)
    bottom, top = float(log_ndtr(low)), float(log_ndtr(high))
    log_mass = top + math.log(-math.expm1(bottom - top))
    found = ndtri_exp(np.logaddexp(bottom, np.log(probability) + log_mass))
    return np.asarray(np.clip(found, low, high))
