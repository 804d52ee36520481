"""Compute the dominating mu: the smallest mu-GDP bound on a privacy loss distribution."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import scipy.special

from privacy.accountants.losses.distribution import LossDistribution

_GRID = 4000
_LARGEST_MU = 1e4
_LARGEST_END = 1e5  # an epsilon at the floor beyond which no mu is looked for
_LARGEST_STEP = 1.0  # between two losses that are compared
Array = npt.NDArray[np.float64]


def log_gaussian_delta(mu: float, epsilon: Array) -> Array:
    """Return log of delta of mu-GDP at each epsilon, vectorised."""
    upper = scipy.special.log_ndtr(-epsilon / mu + mu / 2)
    lower = epsilon + scipy.special.log_ndtr(-epsilon / mu - mu / 2)
    with np.errstate(divide="ignore"):
        return np.asarray(upper + np.log(-np.expm1(np.minimum(lower - upper, 0.0))))


def dominating_mu(distribution: LossDistribution, floor: float) -> float:
    """Return the smallest mu whose delta curve lies above a distribution's, up to a floor.

    Args:
      distribution: A discrete (pessimistic) privacy loss distribution.
      floor: Deltas at most this are not covered; more than the distribution's infinite mass.

    Returns:
      mu >= 0 with delta(eps) <= max(delta_mu(eps), floor) for every eps >= 0 (where delta(eps) is
      above 1/2: <= delta_mu(eps) + floor), at most about 1e-6 (relative) above the smallest;
      infinite if there is none below 1e4.
    """
    end = distribution.epsilon(floor)
    if end > _LARGEST_END:
        return math.inf
    if end == 0:
        return 0.0
    losses = distribution.losses
    epsilons = np.append(0.0, losses[(losses > 0) & (losses < end)])
    if epsilons.size < 2 or max(np.diff(epsilons).max(), end - epsilons[-1]) > _LARGEST_STEP:
        # More points, so that exp of a difference does not overflow.
        between = np.arange(0.0, end, _LARGEST_STEP)
        epsilons = np.unique(np.append(epsilons, between))
        epsilons = epsilons[epsilons < end]
    deltas = distribution.delta(epsilons)
    if deltas[0] <= floor:
        return 0.0
    # The curve falls to the floor at `end`; what is beyond is not covered.
    epsilons, deltas = np.append(epsilons, end), np.append(deltas, floor)
    # Near 1 the PLD's round-off would ask for any mu: there the floor is also an allowance.
    high = deltas > 0.5
    high[:-1] &= high[1:]
    deltas = np.where(high, deltas - floor, deltas)
    grid = np.unique(np.linspace(0, epsilons.size - 1, min(_GRID, epsilons.size)).astype(int))
    mu = _smallest(epsilons[grid], np.log(deltas[grid]))
    step = 1e-9
    while math.isfinite(mu) and not _covers(mu, epsilons, deltas):
        mu *= 1 + step
        step *= 2
    return mu


def _smallest(epsilons: Array, log_deltas: Array) -> float:
    """Bisect for the smallest mu that is above all the points (its upper end)."""
    low, high = 0.0, 1.0
    while not bool(np.all(log_gaussian_delta(high, epsilons) >= log_deltas)):
        low, high = high, 2 * high
        if high > _LARGEST_MU:
            return math.inf
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        if bool(np.all(log_gaussian_delta(middle, epsilons) >= log_deltas)):
            high = middle
        else:
            low = middle
    return high


def _covers(mu: float, epsilons: Array, deltas: Array) -> bool:
    """Return True if the Gaussian curve is above the curve through these points, linear in exp(eps)."""
    gaussian = np.exp(log_gaussian_delta(mu, epsilons))
    if bool(np.any(gaussian < deltas)):
        return False
    # In k = exp(eps) the Gaussian's slope is -Phi(-eps/mu - mu/2). Left tangent at k_i, right
    # tangent at k_{i+1}; everything relative to k_i, so that nothing overflows.
    width = np.expm1(np.diff(epsilons))  # (k_{i+1} - k_i) / k_i
    slope = np.exp(epsilons + scipy.special.log_ndtr(-epsilons / mu - mu / 2))  # -dG/dk * k
    left, right = slope[:-1], slope[1:] / (1 + width)  # both times k_i
    gap = left - right
    with np.errstate(divide="ignore", invalid="ignore"):
        meet = (gaussian[:-1] - gaussian[1:] - right * width) / gap
    meet = np.where(gap > 0, np.clip(meet, 0.0, width), width)
    lowest = gaussian[:-1] - left * meet
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(width > 0, meet / width, 0.0)
    line = deltas[:-1] + (deltas[1:] - deltas[:-1]) * share
    return not bool(np.any(lowest < line))
