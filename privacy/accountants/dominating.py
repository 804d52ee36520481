"""Accountant for the dominating mu: the smallest mu-GDP bound on all mechanisms together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from dp_accounting.dp_event import DpEvent

from privacy.accountants.dominating_mu import dominating_mu
from privacy.accountants.gaussian_curve import gaussian_delta, gaussian_epsilon
from privacy.accountants.pld import PldAccountant
from privacy.events.multiset import is_private
from privacy.guarantee import Relation

DELTA_FLOOR = 1e-10
_LARGEST_FLOOR = 1e-6


class DominatingGdpAccountant(PldAccountant):
    """The smallest mu with delta_PLD(eps) <= delta_mu(eps) for every eps, up to a delta floor.

    The whole curve is covered, not only a grid: between two losses the PLD's curve is linear in
    k = exp(eps), and the Gaussian curve, convex in k, lies above its tangents; the two are compared
    at every loss and where the tangents of two neighbouring losses meet. Both directions of the
    relation are covered at eps >= 0, hence all eps.

    The floor. Far out in the tail a sampled Gaussian looks like one that is not sampled, and the
    smallest mu for all deltas, however small, would be that of no sampling at all. So the statement
    is: for every eps the mechanisms are (eps, max(delta_mu(eps), floor))-DP; where delta_mu(eps) is
    above 0.4, (eps, delta_mu(eps) + floor)-DP. The floor is 1e-10, or four times the PLD's truncated
    mass and round-off where that is more; epsilon at a smaller delta is computed with a mu of its
    own.
    """

    name = "gdp-dominating"
    is_bound = True
    trust = "a valid upper bound: Gaussian differential privacy for every delta above 1e-10"

    def __init__(
        self, relation: Relation = Relation.ZERO_OUT, delta_floor: float = DELTA_FLOOR
    ) -> None:
        """Make an accountant whose mu holds for every delta above `delta_floor`."""
        super().__init__(relation)
        if not 0 < delta_floor < 1:
            raise ValueError(f"Expected 0 < delta_floor < 1, got delta_floor={delta_floor}")
        self.delta_floor = delta_floor

    def floor(self, events: Mapping[DpEvent, int]) -> float:
        """Return the smallest delta that `mu(events)` holds for."""
        return self._floor(self._prepared(events), self.delta_floor)

    def _floor(self, events: Counter[DpEvent], delta: float) -> float:
        return max(delta, *(4 * (d.infinity + d.error) for d in self.distributions(events)))

    def _mu_above(self, events: Counter[DpEvent], floor: float) -> float:
        return _dominating(frozenset(events.items()), self.relation, floor)

    def _mu(self, events: Counter[DpEvent]) -> float | None:
        floor = self._floor(events, self.delta_floor)
        if floor > max(self.delta_floor, _LARGEST_FLOOR):
            return math.inf  # nothing worth the name holds
        return self._mu_above(events, floor)

    def note(self, events: Mapping[DpEvent, int]) -> str:
        """Say for which deltas mu holds."""
        flat = self._prepared(events)
        if not flat or not all(is_private(event) for event in flat):
            return ""
        floor = self._floor(flat, self.delta_floor)
        return f"mu holds for every delta above {_rounded_up(floor)}, not for smaller ones"

    def _epsilon(self, events: Counter[DpEvent], delta: float) -> float:
        floor = self._floor(events, self.delta_floor)
        if delta < floor:
            floor = self._floor(events, delta)
            if delta < floor:
                return math.inf
        # Above delta 0.4 the curve may lack the floor, which is added to delta there.
        return gaussian_epsilon(
            self._mu_above(events, floor), delta if delta <= 0.4 else max(0.4, delta - floor)
        )

    def _delta(self, events: Counter[DpEvent], epsilon: float) -> float:
        floor = self._floor(events, self.delta_floor)
        if floor >= 1:
            return 1.0
        delta = gaussian_delta(self._mu_above(events, floor), epsilon)
        return max(delta, floor) if delta <= 0.4 else delta + floor


@lru_cache(maxsize=1024)
def _dominating(items: frozenset[tuple[DpEvent, int]], relation: Relation, floor: float) -> float:
    distributions = PldAccountant(relation).distributions(Counter(dict(items)))
    return max(dominating_mu(distribution, floor) for distribution in distributions)


def _rounded_up(value: float) -> str:
    """Return two digits, never below the value."""
    text = f"{value:.1e}"
    return text if float(text) >= value else f"{value * 1.1:.1e}"
