"""Calibrate the noise of a later plan to what the privacy filter has left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

from dp_accounting.dp_event import DpEvent

from privacy.calibration import GOAL, solve_decreasing
from privacy.events.constructors import dp_sgd, scalar_noise, truncated_sgd
from privacy.events.multiset import multiset
from privacy.events.serialization import event_to_json
from privacy.guarantee import Relation
from privacy.mechanisms.scalar_noise import ScalarNoise
from privacy.plan_filter import Terms, charge, used
from privacy.result_cache import read_result, write_result

_NONE: Mapping[DpEvent, int] = MappingProxyType({})
_FORMAT = 1
_KIND = "later-plan"
_LARGEST_NOISE = 1e6
_SMALLEST_NOISE = 1e-2


def calibrate_later_plan(
    *,
    terms: Terms | None,
    earlier: Sequence[Mapping[DpEvent, int]],
    sampling_rate: float,
    steps: int,
    relation: Relation = Relation.ADD_OR_REMOVE_ONE,
    other_events: Mapping[DpEvent, int] = _NONE,
    noise: ScalarNoise | None = None,
    truncated: tuple[int, int] | None = None,
    tolerance: float = 1e-3,
    cache_dir: Path | None = None,
) -> float:
    """Return the smallest noise multiplier (within tolerance of what is left) of a plan that still fits.

    Args:
      terms: The filter of the first plan; None for no limit.
      earlier: Plans after the first, in the order of their admission.
      sampling_rate, steps, other_events, noise, truncated: As for
        `privacy.calibration.calibrate_noise_multiplier`; the other events are those of the same plan.
      tolerance: The plan uses from left * (1 - tolerance) to all that is left.
      cache_dir: Folder where results are kept.

    Raises:
      ValueError: No noise is enough; the message says why.
    """
    if terms is None:
        raise ValueError("Expected a filter with a limit, got none")
    others = multiset(other_events)
    # GOAL < 1 keeps a margin for round-off: the admitted plan never exceeds the exact limit.
    left = (terms.limit - used(terms, earlier, relation)) * GOAL
    place = len(earlier) + 1
    key = {
        "format": _FORMAT,
        "dp-accounting": version("dp-accounting"),
        "terms": {name: repr(value) for name, value in terms.to_plain().items()},
        "left": repr(left),
        "place": place,
        "sampling_rate": repr(float(sampling_rate)),
        "steps": int(steps),
        "relation": relation.value,
        "other_events": sorted([event_to_json(e), n] for e, n in others.items()),
        "noise": None if noise is None else noise.to_dict(),
        "tolerance": repr(float(tolerance)),
    }
    if truncated is not None:
        key["truncated"] = list(truncated)
    cached = read_result(cache_dir, _KIND, key)
    if isinstance(cached, float):
        return cached

    def cost(multiplier: float) -> float:
        if truncated is not None:
            size, most = truncated
            event = truncated_sgd(size, sampling_rate, most, multiplier, steps)
        elif noise is None:
            event = dp_sgd(sampling_rate, multiplier, steps)
        else:
            event = scalar_noise(noise.scaled(multiplier), steps, sampling_rate)
        return charge(terms, others + multiset(event), place, relation)

    # Other events of the plan cost the same for every noise: if they alone exceed the rest, stop here.
    beside = charge(terms, others, place, relation)
    if not beside < left:
        raise ValueError(_no_noise(terms, left, beside))
    high = 1.0
    while cost(high) > left:
        high *= 2
        if high > _LARGEST_NOISE:
            raise ValueError(_no_noise(terms, left, cost(high)))
    low = high / 2
    while low > _SMALLEST_NOISE and cost(low) <= left:
        low, high = low / 2, low
    found, _ = solve_decreasing(cost, left, tolerance, low, high)
    write_result(cache_dir, _KIND, key, found)
    return found


def _no_noise(terms: Terms, left: float, asked: float) -> str:
    what = "squared mu" if terms.kind == "gdp" else f"divergence of order {terms.order:g}"
    why = "" if math.isfinite(asked) else " (it has no bound for an event of the plan)"
    return (
        f"No noise is enough: {terms.describe()} has {max(left, 0):.6g} of {what} left, the rest of the plan "
        f"alone uses {asked:.6g}{why}"
    )
