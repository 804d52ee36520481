"""RDP accountant (Renyi differential privacy): a fast and valid upper bound, looser than PLD."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from dp_accounting import dp_event as dp
from dp_accounting import rdp as dp_rdp
from dp_accounting.dp_event import DpEvent
from dp_accounting.rdp import rdp_privacy_accountant

from privacy.accountants.base import Accountant
from privacy.events.kinds import DiscreteGaussianDpEvent, PureDpEvent, ScalarNoiseDpEvent
from privacy.guarantee import Relation

# dp_accounting tells of each order that it leaves out; leaving an order out keeps the bound valid.
logging.getLogger("absl").addFilter(
    lambda record: "Excluding this order" not in record.getMessage()
)

_SMALLEST_DIVERGENCE = 1e-15
# dp_accounting computes (order - 1) * divergence of a sampled event as the logarithm of a sum that is
# close to 1: its round-off is a few 1e-16, and decides at rates around 1e-12 and 1e25 steps.
_ROUND_OFF = 1e-14
ORDERS = tuple(dp_rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)


class RdpAccountant(Accountant):
    """Adds Renyi divergences order by order (Mironov 2017), by dp_accounting.

    Replace-one: dp_accounting's RDP reads a noise multiplier as std over sensitivity whatever the
    relation, while its PLD and the definition of the event (std over clipping norm) give a replaced
    record twice the clipping norm. Here replace-one halves the noise multiplier. Poisson sampling
    is stated for zero-out and add-or-remove-one only, which have one divergence (`privacy.guarantee`). Of
    randomised response see `pld`.
    """

    name = "rdp"
    is_bound = True
    trust = "a valid upper bound, looser than PLD"

    def _refusal(self, event: DpEvent) -> str | None:
        if self.relation.doubles and not isinstance(
            event,
            dp.GaussianDpEvent
            | dp.LaplaceDpEvent
            | DiscreteGaussianDpEvent
            | PureDpEvent
            | dp.SampledWithoutReplacementDpEvent
            | dp.RandomizedResponseDpEvent,
        ):
            return "its Renyi divergence is stated for zero-out and add-or-remove-one only"
        if self.relation is Relation.ZERO_OUT and isinstance(event, dp.RandomizedResponseDpEvent):
            return "randomised response is stated for replace-one only"
        if isinstance(event, DiscreteGaussianDpEvent | PureDpEvent):
            return None
        inner = event.event if isinstance(event, dp.PoissonSampledDpEvent) else event
        if isinstance(inner, ScalarNoiseDpEvent):
            return f"the Renyi divergence of {inner.family} noise is not computed here"
        accountant = dp_rdp.RdpAccountant(
            orders=[2.0], neighboring_relation=self.relation.dp_accounting
        )
        details = accountant._maybe_compose(event, 0, False)
        return None if details is None else str(details.error_message)

    def divergences(self, events: Mapping[DpEvent, int]) -> npt.NDArray[np.float64]:
        """Return the Renyi divergence of each of `ORDERS`; not finite if there is no bound.

        Raises:
          UnsupportedEvent: An event cannot be represented.
        """
        return self._divergences(self._prepared(events))

    def _divergences(self, events: Counter[DpEvent]) -> npt.NDArray[np.float64]:
        total = np.zeros(len(ORDERS))
        for event, count in events.items():
            total += count * _single(event, self.relation)
        return total

    def _epsilon(self, events: Counter[DpEvent], delta: float) -> float:
        if delta == 0:
            return math.inf
        orders, divergences = _usable(self._divergences(events))
        if not orders:
            return math.inf
        return float(rdp_privacy_accountant.compute_epsilon(orders, divergences, delta)[0])

    def _delta(self, events: Counter[DpEvent], epsilon: float) -> float:
        orders, divergences = _usable(self._divergences(events))
        if not orders:
            return 1.0
        return float(rdp_privacy_accountant.compute_delta(orders, divergences, epsilon)[0])


def _usable(divergences: npt.NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Drop the orders whose divergence is not a positive finite number.

    dp_accounting reads a divergence that round-off made negative as no cost at all, and fails on
    one below round-off; such a one is rounded up.
    """
    kept = [
        (order, max(float(value), _SMALLEST_DIVERGENCE))
        for order, value in zip(ORDERS, divergences, strict=True)
        if math.isfinite(value) and value > 0
    ]
    return [order for order, _ in kept], [value for _, value in kept]


@lru_cache(maxsize=4096)
def _single(event: DpEvent, relation: Relation) -> npt.NDArray[np.float64]:
    """Return one event's divergences; infinite if round-off makes one non-positive.

    A sampled event's are raised by what round-off may hide, `_ROUND_OFF` / (order - 1).

    The discrete Gaussian has at most the divergence of the continuous one, order * shift^2 / (2
    sigma^2), for every whole shift (Canonne, Kamath and Steinke 2020, theorem 4).
    """
    if isinstance(event, DiscreteGaussianDpEvent):
        shift = event.sensitivity * (2 if relation.doubles else 1)
        return np.asarray(ORDERS, dtype=np.float64) * (shift / event.sigma) ** 2 / 2
    if isinstance(event, PureDpEvent):
        return _pure(event.epsilon * (2 if relation.doubles else 1))
    if relation.doubles:
        event = _halved(event)
    accountant = dp_rdp.RdpAccountant(
        orders=list(ORDERS), neighboring_relation=relation.dp_accounting
    )
    accountant.compose(event)
    values = np.asarray(accountant._rdp, dtype=np.float64)
    values = np.where(np.isfinite(values) & (values > 0), values, np.inf)
    if isinstance(event, dp.PoissonSampledDpEvent):
        values = values + _ROUND_OFF / (np.asarray(ORDERS) - 1)
    return values


def _pure(epsilon: float) -> npt.NDArray[np.float64]:
    """Return the divergences of randomised response with the losses +-epsilon, which dominates pure privacy:
    log(cosh((order - 1/2) epsilon) / cosh(epsilon / 2)) / (order - 1), raised by round-off."""
    orders = np.asarray(ORDERS, dtype=np.float64)
    arguments = (orders - 0.5) * epsilon
    # log(2 cosh x) = x + log(1 + exp(-2 x))
    above = arguments + np.log1p(np.exp(-2 * arguments))
    below = epsilon / 2 + math.log1p(math.exp(-epsilon))
    return np.asarray((above - below + _ROUND_OFF * (1 + above)) / (orders - 1))


def _halved(event: DpEvent) -> DpEvent:
    """Return the same event with half the noise multiplier, for the doubled sensitivity."""
    if isinstance(event, dp.GaussianDpEvent):
        return dp.GaussianDpEvent(event.noise_multiplier / 2)
    if isinstance(event, dp.LaplaceDpEvent):
        return dp.LaplaceDpEvent(event.noise_multiplier / 2)
    if isinstance(event, dp.SampledWithoutReplacementDpEvent):
        return dp.SampledWithoutReplacementDpEvent(
            event.source_dataset_size, event.sample_size, _halved(event.event)
        )
    return event
