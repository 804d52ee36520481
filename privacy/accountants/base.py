"""Interface of every accountant: take a multiset of events, return epsilon, delta and possibly mu."""

from __future__ import annotations

import abc
import math
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

from dp_accounting.dp_event import DpEvent

from privacy.accountants.normal_form import as_accounted, why_unsupported
from privacy.events.multiset import is_private, multiset
from privacy.events.serialization import kind
from privacy.guarantee import Relation


def _flat(events: Mapping[DpEvent, int], relation: Relation) -> Counter[DpEvent]:
    """Return the multiset of base events, in the form that accountants know them by."""
    result: Counter[DpEvent] = Counter()
    for event, count in multiset(events).items():
        result[as_accounted(event, relation.doubles)] += count
    return multiset(result)


class UnsupportedEvent(ValueError):
    """An event that an accountant cannot represent; the message names both, and the reason."""


class Accountant(abc.ABC):
    """Computes what a multiset of events costs. Stateless: nothing is spent by asking.

    Attributes:
      name: The name in reports and settings.
      is_bound: Whether its epsilon is a proven upper bound.
      trust: In one sentence, what its numbers may be trusted for.
      relation: The neighbouring relation of every number it gives.
    """

    name: ClassVar[str]
    is_bound: ClassVar[bool]
    trust: ClassVar[str]

    def __init__(self, relation: Relation = Relation.ZERO_OUT) -> None:
        """Make an accountant for a neighbouring relation."""
        self.relation = Relation(relation)

    @abc.abstractmethod
    def _refusal(self, event: DpEvent) -> str | None:
        """Return why a private base event cannot be represented, or None if it can."""

    @abc.abstractmethod
    def _epsilon(self, events: Counter[DpEvent], delta: float) -> float:
        """Return epsilon of a supported, private, non-empty multiset; 0 <= delta < 1."""

    @abc.abstractmethod
    def _delta(self, events: Counter[DpEvent], epsilon: float) -> float:
        """Return delta of a supported, private, non-empty multiset; epsilon >= 0, finite."""

    def _mu(self, events: Counter[DpEvent]) -> float | None:
        """Return mu of a supported, private, non-empty multiset, if the accountant has one."""
        return None

    def why_unsupported(self, events: Mapping[DpEvent, int]) -> str | None:
        """Return the reason why some event cannot be represented, or None if all can."""
        return self._why_unsupported(_flat(events, self.relation))

    def _why_unsupported(self, events: Counter[DpEvent]) -> str | None:
        for event in events:
            reason = None
            if is_private(event):
                reason = why_unsupported(event) or self._refusal(event)
            if reason is not None:
                return (
                    f"The {self.name} accountant (relation {self.relation.value}) cannot represent "
                    f"{kind(event)}: {reason}; got {event!r}"
                )
        return None

    def supports(self, events: Mapping[DpEvent, int]) -> bool:
        """Return True if every event can be represented. A release without privacy always can."""
        return self.why_unsupported(events) is None

    def _prepared(self, events: Mapping[DpEvent, int]) -> Counter[DpEvent]:
        flat = _flat(events, self.relation)
        reason = self._why_unsupported(flat)
        if reason is not None:
            raise UnsupportedEvent(reason)
        return flat

    def epsilon(self, events: Mapping[DpEvent, int], delta: float) -> float:
        """Return epsilon >= 0 at delta; infinite if an event gives no privacy.

        Args:
          events: Counts of events; compositions among them are flattened.
          delta: 0 <= delta <= 1.

        Raises:
          UnsupportedEvent: An event cannot be represented.
          ValueError: delta is out of range.
        """
        if not 0 <= delta <= 1:
            raise ValueError(f"Expected 0 <= delta <= 1, got delta={delta}")
        flat = self._prepared(events)
        if not flat or delta == 1:
            return 0.0
        if not all(is_private(event) for event in flat):
            return math.inf
        return max(0.0, float(self._epsilon(flat, delta)))

    def delta(self, events: Mapping[DpEvent, int], epsilon: float) -> float:
        """Return delta in [0, 1] at epsilon; 1 if an event gives no privacy.

        Raises:
          UnsupportedEvent: An event cannot be represented.
          ValueError: epsilon is negative or NaN.
        """
        if math.isnan(epsilon) or epsilon < 0:
            raise ValueError(f"Expected epsilon >= 0, got epsilon={epsilon}")
        flat = self._prepared(events)
        if not flat:
            return 0.0
        if not all(is_private(event) for event in flat):
            return 1.0
        if math.isinf(epsilon):
            epsilon = 1e308
        return min(1.0, max(0.0, float(self._delta(flat, epsilon))))

    def mu(self, events: Mapping[DpEvent, int]) -> float | None:
        """Return the mu of Gaussian differential privacy where this accountant has one.

        Infinite if an event gives no privacy, 0 for no events.

        Raises:
          UnsupportedEvent: An event cannot be represented.
        """
        flat = self._prepared(events)
        if not flat:
            return 0.0 if self._has_mu() else None
        if not all(is_private(event) for event in flat):
            return math.inf if self._has_mu() else None
        return self._mu(flat)

    def note(self, events: Mapping[DpEvent, int]) -> str:
        """Return further conditions of these events' numbers, besides `trust`; may be empty.

        Raises:
          UnsupportedEvent: An event cannot be represented.
        """
        self._prepared(events)
        return ""

    def _has_mu(self) -> bool:
        return type(self)._mu is not Accountant._mu
