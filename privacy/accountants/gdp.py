"""Gaussian differential privacy: exact for plain Gaussians, and the CLT approximation, so named."""

from __future__ import annotations

import math
from collections import Counter

import scipy.optimize
import scipy.special
from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent

from privacy.accountants.base import Accountant
from privacy.vocabulary import Relation

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
    """Log of delta, without cancellation of the exponents (log difference)."""
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


class _GdpAccountant(Accountant):
    """What the two GDP accountants share: epsilon and delta from mu."""

    def _epsilon(self, events: Counter[DpEvent], delta: float) -> float:
        mu = self._mu(events)
        assert mu is not None  # for the type checker
        return gaussian_epsilon(mu, delta)

    def _delta(self, events: Counter[DpEvent], epsilon: float) -> float:
        mu = self._mu(events)
        assert mu is not None  # for the type checker
        return gaussian_delta(mu, epsilon)


class ExactGdpAccountant(_GdpAccountant):
    """mu^2 = sum of (sensitivity / std)^2, exact where every event is an unsampled Gaussian."""

    name = "gdp-exact"
    is_bound = True
    trust = "exact, for Gaussian mechanisms without sampling only"

    def _refusal(self, event: DpEvent) -> str | None:
        if isinstance(event, dp.GaussianDpEvent):
            return None
        return "exact Gaussian differential privacy holds for Gaussian mechanisms without sampling"

    def _mu(self, events: Counter[DpEvent]) -> float | None:
        return _sensitivity(self.relation) * math.sqrt(
            math.fsum(count / event.noise_multiplier**2 for event, count in events.items())
        )


class CltGdpAccountant(_GdpAccountant):
    """The central-limit approximation: an approximation that under-reports, never a bound.

    mu^2 = sum of q^2 (exp(1/sigma^2) - 1) over sampled steps (Bu et al. 2020, "Deep learning with
    Gaussian differential privacy", corollary 5.3), plus 1/sigma^2 for each unsampled Gaussian.
    """

    name = "gdp-clt"
    is_bound = False
    trust = "an approximation that under-reports epsilon; not a bound"

    def _refusal(self, event: DpEvent) -> str | None:
        if isinstance(event, dp.GaussianDpEvent):
            return None
        sampled = isinstance(event, dp.PoissonSampledDpEvent) and isinstance(
            event.event, dp.GaussianDpEvent
        )
        if not sampled:
            return "the central-limit formula is stated for (sampled) Gaussian mechanisms"
        if self.relation.doubles:
            return "the central-limit formula of sampling is stated for zero-out and add-or-remove-one only"
        return None

    def _mu(self, events: Counter[DpEvent]) -> float | None:
        parts = []
        for event, count in events.items():
            if isinstance(event, dp.GaussianDpEvent):
                scale = _sensitivity(self.relation) / event.noise_multiplier
                parts.append(count * scale**2)
            else:
                exponent = event.event.noise_multiplier**-2
                if exponent > 700:
                    return math.inf
                parts.append(count * event.sampling_probability**2 * math.expm1(exponent))
        return math.sqrt(math.fsum(parts))


def _sensitivity(relation: Relation) -> float:
    """L2 sensitivity of a sum of vectors, in units of the clipping norm."""
    return 2.0 if relation.doubles else 1.0
