"""GDP accountants: exact for plain Gaussians, and the CLT approximation under its own name."""

from __future__ import annotations

import math
from collections import Counter

from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent

from privacy.accountants.base import Accountant
from privacy.accountants.gaussian_curve import gaussian_delta, gaussian_epsilon
from privacy.guarantee import Relation


class _GdpAccountant(Accountant):
    """Base of the two GDP accountants: compute epsilon and delta from mu."""

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
    """The central-limit approximation: it may be below the true epsilon or above it, and is never a bound.

    mu^2 = sum of q^2 (exp(1/sigma^2) - 1) over sampled steps (Bu et al. 2020, "Deep learning with
    Gaussian differential privacy", corollary 5.3), plus 1/sigma^2 for each unsampled Gaussian.
    """

    name = "gdp-clt"
    is_bound = False
    trust = "an approximation, which may be below the true epsilon or above it; not a bound"

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
    """Return the L2 sensitivity of a sum of vectors, in units of the clipping norm."""
    return 2.0 if relation.doubles else 1.0
