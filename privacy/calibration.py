"""Calibrate DP-SGD: solve for one parameter, given the others and a privacy target.

Always from the safe side: what is returned costs at most the target by the accountant that was
asked, and the bisection stops within `tolerance` of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dp_accounting.dp_event import DpEvent

from privacy.accountants import Accountant, make_accountant
from privacy.copies import events_of_copies
from privacy.events.constructors import dp_sgd, scalar_noise, truncated_sgd
from privacy.events.multiset import multiset
from privacy.events.serialization import event_to_json
from privacy.guarantee import Relation
from privacy.mechanisms.scalar_noise import ScalarNoise
from privacy.result_cache import read_result, write_result

_NONE: Mapping[DpEvent, int] = MappingProxyType({})
GOAL = 1 - 1e-9  # below the target by more than round-off differs between machines
_FORMAT = 2
_KIND = "calibration"  # of the cache's files
_LARGEST_NOISE = 1e6
_SMALLEST_NOISE = 1e-2
_SOLVER_STEPS = 60


@dataclass(frozen=True)
class Calibration:
    """The solved parameters and their true cost by the accountant: epsilon <= the target."""

    noise_multiplier: float
    epsilon: float
    delta: float
    accountant: str
    sampling_rate: float
    steps: int


def _check(epsilon: float, delta: float, tolerance: float = 1e-3) -> None:
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"Expected a finite epsilon > 0, got epsilon={epsilon}")
    if not 0 < delta < 1:
        raise ValueError(f"Expected 0 < delta < 1, got delta={delta}")
    if not 0 < tolerance < 1:
        raise ValueError(f"Expected 0 < tolerance < 1, got tolerance={tolerance}")


def _schedule(rate: float, noise: float, steps: int, copies: int) -> Counter[DpEvent]:
    """Return the events of DP-SGD for a record that is in the data so many times."""
    return events_of_copies(multiset(dp_sgd(rate, noise, steps)), copies)


def _require_room(
    accountant: Accountant, others: Counter[DpEvent], epsilon: float, delta: float
) -> None:
    spent = accountant.epsilon(others, delta)
    if spent >= epsilon * GOAL:
        raise ValueError(
            f"No noise is enough: the other events alone cost epsilon={spent:.6g} at "
            f"delta={delta:g}, the target is epsilon={epsilon:g}"
        )


def solve_decreasing(
    cost: Callable[[float], float], goal: float, tolerance: float, low: float, high: float
) -> tuple[float, float]:
    """Find x in (low, high] with goal (1 - tolerance) <= cost(x) <= goal; cost decreases in x.

    Regula falsi in (log x, log cost) with bisection steps; cost(high) <= goal is known.

    Returns:
      (x, cost(x)), always with cost(x) <= goal.
    """
    high_cost = cost(high)
    low_cost = cost(low)
    if low_cost <= goal:
        return low, low_cost
    for step in range(_SOLVER_STEPS):
        if high_cost >= goal * (1 - tolerance) or high - low <= 1e-12 * high:
            break
        middle = math.sqrt(low * high)
        if step % 3 != 2 and math.isfinite(low_cost) and high_cost > 0:
            # Aim at the middle of the accepted interval.
            aim = math.log(goal * (1 - tolerance / 2))
            share = (math.log(low_cost) - aim) / (math.log(low_cost) - math.log(high_cost))
            middle = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        middle = min(max(middle, math.nextafter(low, high)), math.nextafter(high, low))
        middle_cost = cost(middle)
        if middle_cost <= goal:
            high, high_cost = middle, middle_cost
        else:
            low, low_cost = middle, middle_cost
    return high, high_cost


def calibrate_noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    relation: Relation = Relation.ZERO_OUT,
    other_events: Mapping[DpEvent, int] = _NONE,
    accountant: str = "pld",
    tolerance: float = 1e-3,
    cache_dir: Path | None = None,
    noise: ScalarNoise | None = None,
    copies: int = 1,
    truncated: tuple[int, int] | None = None,
) -> Calibration:
    """Return the smallest noise multiplier (within tolerance) that keeps to the target.

    Args:
      epsilon: Target, finite and > 0.
      delta: 0 < delta < 1.
      sampling_rate: 0 < rate <= 1.
      steps: Number of DP-SGD steps, >= 1.
      relation: The neighbouring relation.
      other_events: What else is spent on the same data from the same budget.
      accountant: Name of the accountant that epsilon is measured by.
      tolerance: The result costs from target * (1 - tolerance) to target. It costs less where the
        cost jumps over that range, as where hardly any record is ever sampled (steps * rate about
        delta or less): then any noise will do, and the smallest considered, 0.01, is returned.
      cache_dir: Folder where results are kept as JSON, keyed by all inputs and versions.
      noise: Each step releases one number with this noise, times the multiplier, in units of the number's
        sensitivity. None: Gaussian noise on a vector (DP-SGD).
      copies: The target holds for a record that is in the data so many times (`privacy.copies`); the other
        events are taken as they are given.
      truncated: Number of records and the most that a step keeps of its sample (`events.truncated_sgd`);
        None: nothing is cut.

    Raises:
      ValueError: An input is out of range, or the target is impossible; the message says why.
      UnsupportedEvent: The accountant cannot represent the events.
    """
    _check(epsilon, delta, tolerance)
    if steps < 1:
        raise ValueError(f"Expected steps >= 1, got steps={steps}")
    others = multiset(other_events)
    chosen = make_accountant(accountant, relation)
    key = {
        "format": _FORMAT,
        "dp-accounting": version("dp-accounting"),
        "epsilon": repr(float(epsilon)),
        "delta": repr(float(delta)),
        "sampling_rate": repr(float(sampling_rate)),
        "steps": int(steps),
        "relation": relation.value,
        "other_events": sorted([event_to_json(e), n] for e, n in others.items()),
        "accountant": accountant,
        "tolerance": repr(float(tolerance)),
    }
    if noise is not None:
        key["noise"] = noise.to_dict()
    if copies != 1:
        key["copies"] = int(copies)
    if truncated is not None:
        key["truncated"] = list(truncated)
    cached = _read_cache(cache_dir, key)
    if cached is not None:
        return cached

    def events(multiplier: float) -> Counter[DpEvent]:
        if truncated is not None:
            size, most = truncated
            cut = multiset(truncated_sgd(size, sampling_rate, most, multiplier, steps))
            return others + events_of_copies(cut, copies)
        if noise is None:
            return others + _schedule(sampling_rate, multiplier, steps, copies)
        numbers = multiset(scalar_noise(noise.scaled(multiplier), steps, sampling_rate))
        return others + events_of_copies(numbers, copies)

    _require_room(chosen, others, epsilon, delta)
    goal = epsilon * GOAL
    low, high = _bracket(chosen, events, goal, delta)
    found, cost = solve_decreasing(
        lambda x: chosen.epsilon(events(x), delta), goal, tolerance, low, high
    )
    result = Calibration(found, cost, delta, accountant, float(sampling_rate), int(steps))
    write_result(cache_dir, _KIND, key, asdict(result))
    return result


def _bracket(
    accountant: Accountant,
    events: Callable[[float], Counter[DpEvent]],
    goal: float,
    delta: float,
) -> tuple[float, float]:
    """Return (low, high) with cost(high) <= goal; RDP finds it cheaply where it can."""
    cheap = make_accountant("rdp", accountant.relation)
    if not cheap.supports(events(1.0)):
        cheap = accountant

    def enough(by: Accountant, noise: float) -> bool:
        return by.epsilon(events(noise), delta) <= goal

    high = 1.0
    while not enough(cheap, high) and high < _LARGEST_NOISE:
        high *= 2
    low = high / 2
    while enough(cheap, low) and low > _SMALLEST_NOISE:
        low, high = low / 2, low
    if cheap is not accountant:
        for _ in range(12):  # to 0.02 %
            middle = math.sqrt(low * high)
            low, high = (low, middle) if enough(cheap, middle) else (middle, high)
    while not enough(accountant, high):
        high *= 1.25
        if high > _LARGEST_NOISE:
            raise ValueError(
                f"No noise_multiplier up to {_LARGEST_NOISE:g} keeps to epsilon={goal:.6g} at "
                f"delta={delta:g} by the {accountant.name} accountant"
            )
    low = high * 0.85
    while enough(accountant, low) and low > _SMALLEST_NOISE:
        low, high = low * 0.6, low
    return low, high


def calibrate_steps(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    noise_multiplier: float,
    relation: Relation = Relation.ZERO_OUT,
    other_events: Mapping[DpEvent, int] = _NONE,
    accountant: str = "pld",
    most: int = 10**7,
    copies: int = 1,
) -> Calibration:
    """Return the largest number of steps (up to `most`) that keeps to the target.

    Raises:
      ValueError: An input is out of range, or not even one step fits.
    """
    _check(epsilon, delta)
    others = multiset(other_events)
    chosen = make_accountant(accountant, relation)
    _require_room(chosen, others, epsilon, delta)

    def cost(steps: int) -> float:
        return chosen.epsilon(
            others + _schedule(sampling_rate, noise_multiplier, steps, copies), delta
        )

    goal = epsilon * GOAL
    one = cost(1)
    if one > goal:
        raise ValueError(
            f"Not even one step fits: it costs epsilon={one:.6g}, the target is {epsilon:g}"
        )
    low, high = 1, 2
    while high <= most and cost(high) <= goal:
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= goal else (low, middle)
    return Calibration(noise_multiplier, cost(low), delta, accountant, sampling_rate, low)


def calibrate_sampling_rate(
    *,
    epsilon: float,
    delta: float,
    noise_multiplier: float,
    steps: int,
    relation: Relation = Relation.ZERO_OUT,
    other_events: Mapping[DpEvent, int] = _NONE,
    accountant: str = "pld",
    tolerance: float = 1e-3,
    copies: int = 1,
) -> Calibration:
    """Return the largest sampling rate (within tolerance of the target) that keeps to it.

    Raises:
      ValueError: An input is out of range, or no rate above 1e-9 fits.
    """
    _check(epsilon, delta, tolerance)
    others = multiset(other_events)
    chosen = make_accountant(accountant, relation)
    _require_room(chosen, others, epsilon, delta)

    def cost(inverse_rate: float) -> float:
        rate = min(1.0, 1 / inverse_rate)
        return chosen.epsilon(others + _schedule(rate, noise_multiplier, steps, copies), delta)

    goal = epsilon * GOAL
    high = 1.0
    while cost(high) > goal:
        high *= 4
        if high > 1e9:
            raise ValueError(
                f"No sampling_rate above 1e-9 keeps to epsilon={epsilon:g} with "
                f"noise_multiplier={noise_multiplier:g} and steps={steps}"
            )
    inverse, found = solve_decreasing(cost, goal, tolerance, max(1.0, high / 4), high)
    rate = min(1.0, 1 / inverse)
    return Calibration(noise_multiplier, found, delta, accountant, rate, steps)


def calibrate_delta(
    *,
    epsilon: float,
    sampling_rate: float,
    noise_multiplier: float,
    steps: int,
    relation: Relation = Relation.ZERO_OUT,
    other_events: Mapping[DpEvent, int] = _NONE,
    accountant: str = "pld",
    copies: int = 1,
) -> Calibration:
    """Return the smallest delta of the schedule at epsilon.

    Raises:
      ValueError: An input is out of range.
    """
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise ValueError(f"Expected a finite epsilon >= 0, got epsilon={epsilon}")
    schedule = _schedule(sampling_rate, noise_multiplier, steps, copies)
    events = multiset(other_events) + schedule
    delta = make_accountant(accountant, relation).delta(events, epsilon)
    return Calibration(noise_multiplier, epsilon, delta, accountant, sampling_rate, steps)


def _read_cache(cache_dir: Path | None, key: Mapping[str, Any]) -> Calibration | None:
    """Read a result; whatever is not exactly one of ours is computed again."""
    try:
        return Calibration(**read_result(cache_dir, _KIND, key))
    except TypeError:  # none, or not of our fields
        return None
