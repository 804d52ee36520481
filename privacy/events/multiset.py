"""Add up privacy events as a multiset of base events, and detect events without a guarantee.

No privacy number is computed here, but one: Gaussian mechanisms on one Poisson sample are one, see `multiset`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent

from privacy.events.kinds import DiscreteGaussianDpEvent
from privacy.events.serialization import canonical


def _add(event: DpEvent, count: int, into: Counter[DpEvent]) -> None:
    if count == 0 or isinstance(event, dp.NoOpDpEvent):
        return
    if isinstance(event, dp.SelfComposedDpEvent):
        _add(event.event, event.count * count, into)
    elif isinstance(event, dp.ComposedDpEvent):
        for part in event.events:
            _add(part, count, into)
    elif isinstance(event, dp.PoissonSampledDpEvent) and event.sampling_probability == 1:
        _add(event.event, count, into)
    elif isinstance(event, dp.PoissonSampledDpEvent) and event.sampling_probability == 0:
        return
    elif isinstance(event, dp.PoissonSampledDpEvent) and isinstance(event.event, _COMPOSITIONS):
        into[dp.PoissonSampledDpEvent(event.sampling_probability, _as_one(event.event))] += count
    else:
        into[event] += count


def flattened(event: DpEvent) -> Counter[DpEvent]:
    """Return `multiset` of an event that is canonical already."""
    result: Counter[DpEvent] = Counter()
    _add(event, 1, result)
    return result


_COMPOSITIONS = (dp.ComposedDpEvent, dp.SelfComposedDpEvent)


def _as_one(event: DpEvent) -> DpEvent:
    """Return a composition of Gaussian mechanisms as the one that costs as much; others as they are."""
    parts: Counter[DpEvent] = Counter()
    _add(event, 1, parts)
    if parts.total() == 1:
        return next(iter(parts))
    if not parts or not all(isinstance(p, dp.GaussianDpEvent) and is_private(p) for p in parts):
        return event
    precision = math.fsum(count / part.noise_multiplier**2 for part, count in parts.items())
    return dp.GaussianDpEvent(precision**-0.5)


def multiset(
    events: DpEvent | Iterable[DpEvent] | Mapping[DpEvent, int],
) -> Counter[DpEvent]:
    """Flatten compositions into a multiset of base events.

    Composition of the accountants here does not depend on the order, so a schedule is its
    multiset. Sampling with rate 1 is the event itself, sampling with rate 0 and NoOp are nothing.
    Gaussian mechanisms on one Poisson sample are one, see `poisson_sampled`.

    Args:
      events: One event, several, or counts of events.

    Raises:
      UnknownEvent: A kind that is not known, or a value out of range.
      ValueError: A count is negative.
    """
    result: Counter[DpEvent] = Counter()
    if isinstance(events, DpEvent):
        events = {canonical(events): 1}
    if isinstance(events, Mapping):
        for event, count in events.items():
            if count != int(count) or count < 0:
                raise ValueError(f"Expected a whole count >= 0 of {event!r}, got {count}")
            _add(canonical(event), int(count), result)
    else:
        for event in events:
            _add(canonical(event), 1, result)
    return result


def is_private(event: DpEvent) -> bool:
    """Return True if an event gives any guarantee at all (no noise is no guarantee)."""
    if isinstance(event, dp.NonPrivateDpEvent):
        return False
    if isinstance(event, (dp.GaussianDpEvent, dp.LaplaceDpEvent)):
        return bool(event.noise_multiplier > 0)
    if isinstance(event, DiscreteGaussianDpEvent):
        return event.sigma > 0
    if isinstance(event, dp.ComposedDpEvent):
        return all(map(is_private, event.events))
    inner = getattr(event, "event", None)
    return is_private(inner) if isinstance(inner, DpEvent) else True
