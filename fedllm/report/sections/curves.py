"""The whole privacy curve of one silo: delta against epsilon, and the trade-off function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from dp_accounting.dp_event import DpEvent
from scipy.special import ndtr, ndtri

from privacy.accountants import Accountant, make_accountant
from privacy.accountants.dominating import DominatingGdpAccountant
from privacy.accountants.gaussian_curve import gaussian_delta
from privacy.guarantee import Relation

SMALLEST_DELTA = 1e-10
"""End of the drawn curve of delta; the dominating mu covers no smaller delta."""
_LARGEST_EPSILON = 500.0
_FINE, _COARSE = 3000, 120
_SHOWN = 160
Array = npt.NDArray[np.float64]


def privacy_curves(
    events: Mapping[DpEvent, int], accountant_name: str, relation: Relation
) -> dict[str, Any] | None:
    """Return delta at each epsilon, the trade-off function, and the dominating mu's curves next to them.

    Args:
        events: the events of one silo in one adversary's view, each with a guarantee.
        accountant_name: the accountant of the headline, a bound.

    Returns:
        ``epsilon_delta``: points (epsilon, delta, delta of the dominating mu or None);
        ``trade_off``: points (false alarms, missed, missed by the dominating mu or None), the least
        rate of missed detections that any test of "was this record used?" can reach at a rate of
        false alarms; ``mu``; ``mu_floor``: the mu covers deltas above this. None where the accountant
        gives no finite curve.
    """
    accountant = make_accountant(accountant_name, relation)
    if not events:
        return None
    mu, floor = _dominating(events, accountant, relation)
    end = accountant.epsilon(events, max(floor, SMALLEST_DELTA))
    if not math.isfinite(end) or end <= 0 or end > _LARGEST_EPSILON:
        return None
    fine = np.linspace(0.0, end, _FINE if accountant_name == "pld" else _COARSE)
    deltas = np.array([accountant.delta(events, float(epsilon)) for epsilon in fine])
    chosen = np.unique(np.linspace(0, fine.size - 1, _SHOWN).astype(int))
    alphas = np.unique(np.r_[0.0, 0.01, np.geomspace(1e-4, 0.02, 20), np.linspace(0.02, 1.0, 99)])
    missed = trade_off(fine, deltas, alphas)
    missed_of_mu: list[float | None] = [None] * alphas.size
    if mu is not None:
        missed_of_mu = [float(value) for value in gaussian_trade_off(mu, alphas)]
    return {
        "mu": mu,
        "mu_floor": floor if mu is not None else None,
        "epsilon_delta": [
            [
                float(fine[i]),
                float(deltas[i]),
                None if mu is None else max(gaussian_delta(mu, float(fine[i])), floor),
            ]
            for i in chosen
        ],
        "trade_off": [
            [float(a), float(b), c] for a, b, c in zip(alphas, missed, missed_of_mu, strict=True)
        ],
    }


def least_missed(
    events: Mapping[DpEvent, int], accountant_name: str, relation: Relation, alarms: float
) -> float:
    """Return the least rate of missed detections of any test with this rate of false alarms, or less."""
    accountant = make_accountant(accountant_name, relation)
    end = accountant.epsilon(events, SMALLEST_DELTA)
    end = end if math.isfinite(end) else 2 * accountant.epsilon(events, 1e-5)
    if not math.isfinite(end) or end > _LARGEST_EPSILON:
        return 0.0
    epsilons = np.linspace(0.0, end, _COARSE)
    deltas = np.array([accountant.delta(events, float(epsilon)) for epsilon in epsilons])
    return float(trade_off(epsilons, deltas, np.array([alarms]))[0])


def missed_at(epsilon: float, delta: float, alarms: float) -> float:
    """Return the least share that a test misses at a rate of false alarms, by one (epsilon, delta) alone."""
    return float(trade_off(np.array([epsilon]), np.array([delta]), np.array([alarms]))[0])


def trade_off(epsilons: Array, deltas: Array, alphas: Array) -> Array:
    """Return the trade-off function that a curve of delta implies: never above the true one.

    f(alpha) = max over epsilon of max(0, 1 - delta - e^epsilon alpha, e^-epsilon (1 - delta - alpha))
    (Dong, Roth and Su 2022, proposition 2.5), over the epsilons given: leaving some out only lowers it.
    """
    k, rest = np.exp(epsilons)[:, None], (1.0 - deltas)[:, None]
    lines = np.maximum(rest - k * alphas, (rest - alphas) / k)
    return np.asarray(np.maximum(lines.max(axis=0), 0.0))


def gaussian_trade_off(mu: float, alphas: Array) -> Array:
    """Return the trade-off function of mu-GDP: Phi(Phi^-1(1 - alpha) - mu)."""
    return np.asarray(ndtr(ndtri(1.0 - alphas) - mu))


def _dominating(
    events: Mapping[DpEvent, int], accountant: Accountant, relation: Relation
) -> tuple[float | None, float]:
    """Return the dominating mu, if it can be had, and the delta above which it holds."""
    dominating = DominatingGdpAccountant(relation)
    if not dominating.supports(events):
        return None, SMALLEST_DELTA
    mu = dominating.mu(events)
    if mu is None or not math.isfinite(mu):
        return None, SMALLEST_DELTA
    return float(mu), dominating.floor(events)
