"""Privacy curve of Gaussian differential privacy: delta at an epsilon, epsilon at a delta."""

from __future__ import annotations

import math

import scipy.optimize
import scipy.special

_LARGEST_MU = 1e6  # beyond it epsilon, about mu^2 / 2, has no digits left; it is called infinite


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta of mu-GDP at epsilon: Phi(-e/mu + mu/2) - exp(e) Phi(-e/mu - mu/2).

    Dong, Roth and Su 2022, "Gaussian differential privacy", corollary 2.13.
    """
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    return math.exp(_log_delta(mu, epsilon))


def _log_delta(mu: float, epsilon: float) -> float:
    """Return log of delta, without cancellation of the exponents (log difference)."""
    upper = float(scipy.special.log_ndtr(-epsilon / mu + mu / 2))
    lower = epsilon + float(scipy.special.log_ndtr(-epsilon / mu - mu / 2))
    if lower >= upper:
        return -math.inf if upper < -700 else upper + math.log(1e-16)
    return upper + math.log(-math.expm1(lower - upper))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon >= 0 at which mu-GDP gives delta, rounded up by 1e-12.

    Args:
      mu: >= 0; infinite gives infinity.
      delta: 0 <= delta <= 1; 0 gives infinity (for mu > 0).
    """
    if mu == 0 or delta >= 1:
        return 0.0
    if mu > _LARGEST_MU or delta <= 0:
        return math.inf
    target = math.log(delta)
    if _log_delta(mu, 0.0) <= target:
        return 0.0
    # delta(eps) <= Phi(-eps/mu + mu/2) <= delta here, so this is an upper end.
    high = mu * (mu / 2 - float(scipy.special.ndtri(min(delta, 0.5)))) + 1.0
    root = scipy.optimize.brentq(
        lambda e: max(_log_delta(mu, e), -1e6) - target, 0.0, high, xtol=1e-13, rtol=1e-13
    )
    return float(root) * (1 + 1e-12) + 1e-12
