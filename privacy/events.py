"""Privacy events: dp_accounting's DpEvent trees, made, normalised, and written as JSON.

An event is one use of a mechanism on private data. This module does not compute any privacy
number; it refuses by name every kind of event that it does not know.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent

from privacy.event_kinds import DiscreteGaussianDpEvent as DiscreteGaussianDpEvent
from privacy.event_kinds import NoGuaranteeDpEvent as NoGuaranteeDpEvent
from privacy.event_kinds import PureDpEvent as PureDpEvent
from privacy.event_kinds import ScalarNoiseDpEvent as ScalarNoiseDpEvent
from privacy.event_kinds import VectorNoiseDpEvent as VectorNoiseDpEvent
from privacy.event_kinds import pairs
from privacy.scalar_noise import ScalarNoise


class UnknownEvent(ValueError):
    """An event of a kind, or with a parameter, that cannot be written down or accounted."""


def _probability(value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError("expected a probability from 0 to 1")
    return number


def _number(value: Any) -> float:
    """A finite number >= 0; numpy scalars and ints become float."""
    if isinstance(value, (bool, str)):
        raise ValueError("expected a number")
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError("expected a finite number >= 0")
    return number


def _number_or_infinity(value: Any) -> float:
    return math.inf if value in ("inf", math.inf) else _number(value)


def _whole(value: Any) -> int:
    if isinstance(value, (bool, str)) or int(value) != value or value < 0:
        raise ValueError("expected a whole number >= 0")
    return int(value)


def _whole_positive(value: Any) -> int:
    number = _whole(value)
    if number < 1:
        raise ValueError("expected a whole number >= 1")
    return number


def _wholes(value: Any) -> int | tuple[int, ...]:
    return tuple(_whole(v) for v in value) if isinstance(value, (list, tuple)) else _whole(value)


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(_number(v) for v in value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    return value


def _pairs(value: Any) -> tuple[tuple[str, float], ...]:
    """Pairs (name, number) sorted by name; a name once."""
    listed = isinstance(value, (list, tuple))
    if not listed or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in value):
        raise ValueError("expected pairs of a name and a number")
    found = tuple(sorted((_text(name), _number(number)) for name, number in value))
    if len(dict(found)) != len(found):
        raise ValueError("expected each name once")
    return found


def _event(value: Any) -> DpEvent:
    return canonical(value)


def _events(value: Any) -> tuple[DpEvent, ...]:
    return tuple(canonical(v) for v in value)


# kind -> (class, {field: reader}). A reader checks a value and returns its canonical form.
_Reader = Callable[[Any], Any]
_KINDS: dict[str, tuple[type[DpEvent], dict[str, _Reader]]] = {
    "NoOp": (dp.NoOpDpEvent, {}),
    "NonPrivate": (NoGuaranteeDpEvent, {"reason": _text}),
    "Gaussian": (dp.GaussianDpEvent, {"noise_multiplier": _number}),
    "Laplace": (dp.LaplaceDpEvent, {"noise_multiplier": _number}),
    "DiscreteLaplace": (
        dp.DiscreteLaplaceDpEvent,
        {"noise_parameter": _number, "sensitivity": _whole},
    ),
    "DiscreteGaussian": (
        DiscreteGaussianDpEvent,
        {"sigma": _number, "sensitivity": _whole_positive},
    ),
    "PureDp": (PureDpEvent, {"epsilon": _number}),
    "ScalarNoise": (ScalarNoiseDpEvent, {"family": _text, "parameters": _pairs}),
    "VectorNoise": (
        VectorNoiseDpEvent,
        {"family": _text, "parameters": _pairs, "dimension": _whole},
    ),
    "RandomizedResponse": (
        dp.RandomizedResponseDpEvent,
        {"noise_parameter": _probability, "num_buckets": _whole},
    ),
    "SelfComposed": (dp.SelfComposedDpEvent, {"event": _event, "count": _whole}),
    "Composed": (dp.ComposedDpEvent, {"events": _events}),
    "PoissonSampled": (
        dp.PoissonSampledDpEvent,
        {"sampling_probability": _probability, "event": _event},
    ),
    "SampledWithReplacement": (
        dp.SampledWithReplacementDpEvent,
        {"source_dataset_size": _whole, "sample_size": _whole, "event": _event},
    ),
    "SampledWithoutReplacement": (
        dp.SampledWithoutReplacementDpEvent,
        {"source_dataset_size": _whole, "sample_size": _whole, "event": _event},
    ),
    "SingleEpochTreeAggregation": (
        dp.SingleEpochTreeAggregationDpEvent,
        {"noise_multiplier": _number, "step_counts": _wholes},
    ),
    "RepeatAndSelect": (
        dp.RepeatAndSelectDpEvent,
        {"event": _event, "mean": _number, "shape": _number_or_infinity},
    ),
    "MixtureOfGaussians": (
        dp.MixtureOfGaussiansDpEvent,
        {"standard_deviation": _number, "sensitivities": _numbers, "sampling_probs": _numbers},
    ),
    "ZCDP": (dp.ZCDpEvent, {"rho": _number, "xi": _number}),
    "TruncatedSubsampledGaussian": (
        dp.TruncatedSubsampledGaussianDpEvent,
        {
            "dataset_size": _whole,
            "sampling_probability": _probability,
            "truncated_batch_size": _whole,
            "noise_multiplier": _number,
        },
    ),
}
_NAMES: dict[type, str] = {cls: name for name, (cls, _) in _KINDS.items()}
_NAMES[dp.NonPrivateDpEvent] = "NonPrivate"


def kind(event: DpEvent) -> str:
    """Return the name of an event's kind, such as "PoissonSampled".

    Raises:
      UnknownEvent: No such kind is known here; the message names it.
    """
    try:
        return _NAMES[type(event)]
    except KeyError:
        raise UnknownEvent(
            f"Expected an event of kind {', '.join(_KINDS)}, got {type(event).__name__}: {event!r}"
        ) from None


def _fields(event: DpEvent) -> dict[str, Any]:
    name = kind(event)
    if name == "NonPrivate":
        return {"reason": getattr(event, "reason", "")}
    return {field: getattr(event, field) for field in _KINDS[name][1]}


def _build(name: str, values: Mapping[str, Any]) -> DpEvent:
    cls, readers = _KINDS[name]
    if set(values) != set(readers):
        raise UnknownEvent(
            f"Expected the fields {sorted(readers)} in event {name}, got {sorted(values)}"
        )
    read: dict[str, Any] = {}
    for field, reader in readers.items():
        try:
            read[field] = reader(values[field])
        except UnknownEvent:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise UnknownEvent(f"Event {name}: {field}={values[field]!r}: {error}") from None
    try:
        return cls(**read)
    except ValueError as error:
        raise UnknownEvent(f"Event {name}: {error}") from None


def canonical(event: DpEvent) -> DpEvent:
    """Return the event with checked, hashable field values (floats as float, lists as tuples).

    Raises:
      UnknownEvent: A kind that is not known, or a value out of range.
    """
    if type(event) in _FREQUENT:
        try:
            return _canonical_frequent(event)
        except TypeError:  # it holds something that cannot be hashed
            pass
    return _build(kind(event), _fields(event))


_FREQUENT = (dp.GaussianDpEvent, dp.PoissonSampledDpEvent)


@lru_cache(maxsize=65536)
def _canonical_frequent(event: DpEvent) -> DpEvent:
    return _build(kind(event), _fields(event))


def _to_tree(value: Any) -> Any:
    if isinstance(value, DpEvent):
        fields = {name: _to_tree(v) for name, v in _fields(value).items()}
        return {"kind": kind(value), **fields}
    if isinstance(value, (list, tuple)):
        return [_to_tree(v) for v in value]
    return "inf" if value == math.inf and isinstance(value, float) else value


def _from_tree(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_from_tree(v) for v in tree]
    if not isinstance(tree, dict):
        return tree
    name = tree.get("kind")
    if name not in _KINDS:
        raise UnknownEvent(f"Expected an event of kind {', '.join(_KINDS)}, got kind={name!r}")
    return _build(name, {key: _from_tree(v) for key, v in tree.items() if key != "kind"})


def event_to_json(event: DpEvent) -> str:
    """Return the canonical JSON text of an event: sorted keys, no spaces, exact floats.

    Raises:
      UnknownEvent: A kind that is not known, or a value out of range.
    """
    tree = _to_tree(canonical(event))
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def event_from_json(text: str) -> DpEvent:
    """Read an event that `event_to_json` wrote.

    Raises:
      UnknownEvent: Not JSON, a kind that is not known, or a value out of range.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise UnknownEvent(f"Expected an event as JSON, got {text[:80]!r}: {error}") from None
    if not isinstance(tree, dict):
        raise UnknownEvent(f"Expected an event as a JSON object, got {text[:80]!r}")
    event: DpEvent = _from_tree(tree)
    return event


def event_digest(event: DpEvent) -> str:
    """Return the SHA-256 (hex) of the canonical JSON."""
    return hashlib.sha256(event_to_json(event).encode()).hexdigest()


def gaussian(noise_multiplier: float, count: int = 1) -> DpEvent:
    """The event of `count` Gaussian mechanisms; noise_multiplier is std / sensitivity, > 0."""
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(
            f"Expected a finite noise_multiplier > 0, got noise_multiplier={noise_multiplier} "
            "(a release without noise is no_guarantee)"
        )
    if isinstance(count, bool) or count != int(count) or count < 0:
        raise ValueError(f"Expected a whole count >= 0, got count={count}")
    event = dp.GaussianDpEvent(float(noise_multiplier))
    return event if count == 1 else dp.SelfComposedDpEvent(event, int(count))


def discrete_gaussian(sigma: float, sensitivity: int = 1, count: int = 1) -> DpEvent:
    """The event of `count` whole numbers with discrete Gaussian noise, each of its own sensitivity.

    Args:
      sigma: The parameter of the noise, finite and > 0.
      sensitivity: The most that one record contributes to each number; whole, >= 1.
      count: How many numbers one record may change; whole, >= 0.

    Raises:
      ValueError: A parameter is out of range.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"Expected a finite sigma > 0, got sigma={sigma}")
    if isinstance(sensitivity, bool) or sensitivity != int(sensitivity) or sensitivity < 1:
        raise ValueError(f"Expected a whole sensitivity >= 1, got sensitivity={sensitivity}")
    if isinstance(count, bool) or count != int(count) or count < 0:
        raise ValueError(f"Expected a whole count >= 0, got count={count}")
    event = DiscreteGaussianDpEvent(float(sigma), int(sensitivity))
    return event if count == 1 else dp.SelfComposedDpEvent(event, int(count))


def pure_dp(epsilon: float) -> DpEvent:
    """The event of a mechanism that is (epsilon, 0)-DP under add-or-remove-one, such as a noisy choice.

    Raises:
      ValueError: epsilon is not finite and > 0.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"Expected a finite epsilon > 0, got epsilon={epsilon}")
    return PureDpEvent(float(epsilon))


def scalar_noise(noise: ScalarNoise, count: int = 1, sampling_rate: float = 1.0) -> DpEvent:
    """The event of `count` real numbers, each with fresh additive noise of a family.

    Args:
      noise: The noise in units of the sensitivity (the most that one record contributes).
      count: How many are released: numbers that one record changes, or steps; whole, >= 0.
      sampling_rate: Probability that a record is in the Poisson sample that a number is made of,
        drawn anew for each of them; 0 < rate <= 1.

    Raises:
      ValueError: A parameter is out of range.
    """
    return _repeated(ScalarNoiseDpEvent(noise.family, pairs(noise)), count, sampling_rate)


def vector_noise(noise: ScalarNoise, dimension: int, count: int = 1, rate: float = 1.0) -> DpEvent:
    """The event of `count` vectors with independent scalar noise on each coordinate.

    Args:
      noise: In units of the L2 norm that one record contributes at most.
      dimension: Number of coordinates, whole, >= 1; 0 for any number.
      count, rate: As `count` and `sampling_rate` of `scalar_noise`.

    Raises:
      ValueError: A parameter is out of range.
    """
    if isinstance(dimension, bool) or dimension != int(dimension) or dimension < 0:
        raise ValueError(f"Expected a whole dimension >= 0, got dimension={dimension}")
    one = VectorNoiseDpEvent(noise.family, pairs(noise), int(dimension))
    return _repeated(one, count, rate)


def _repeated(event: DpEvent, count: int, sampling_rate: float) -> DpEvent:
    """`count` of an event, each on a Poisson sample of its own."""
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"Expected 0 < sampling_rate <= 1, got sampling_rate={sampling_rate}")
    if isinstance(count, bool) or count != int(count) or count < 0:
        raise ValueError(f"Expected a whole count >= 0, got count={count}")
    if sampling_rate < 1:
        event = dp.PoissonSampledDpEvent(float(sampling_rate), event)
    return event if count == 1 else dp.SelfComposedDpEvent(event, int(count))


def dp_sgd(sampling_rate: float, noise_multiplier: float, steps: int) -> DpEvent:
    """The event of `steps` DP-SGD steps: Poisson sampling, then the Gaussian mechanism.

    Args:
      sampling_rate: Probability that an example is in a step's sample, 0 < rate <= 1. At rate 1 it
        is the plain Gaussian mechanism.
      noise_multiplier: Standard deviation over L2 sensitivity, > 0.
      steps: Whole, >= 0.

    Raises:
      ValueError: A parameter is out of range.
    """
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"Expected 0 < sampling_rate <= 1, got sampling_rate={sampling_rate}")
    if isinstance(steps, bool) or steps != int(steps) or steps < 0:
        raise ValueError(f"Expected a whole number of steps >= 0, got steps={steps}")
    step = gaussian(noise_multiplier)
    if sampling_rate < 1:
        step = dp.PoissonSampledDpEvent(float(sampling_rate), step)
    return step if steps == 1 else dp.SelfComposedDpEvent(step, int(steps))


def poisson_sampled(sampling_rate: float, events: Iterable[DpEvent]) -> DpEvent:
    """The event of several mechanisms on *one* Poisson sample, each of which may know the ones before.

    Where all are Gaussian, `multiset` accounts for them exactly as one: adaptively composed Gaussian
    mechanisms of multipliers s_i on the same data are dominated by the Gaussian mechanism with 1/s^2
    = sum_i 1/s_i^2 (their pair of worst-case distributions is a product of normals, which a rotation
    turns into one; Dong, Roth and Su 2019, corollary 2.1), and sampling amplifies whatever it is (Zhu,
    Dong and Wang 2022, theorem 11).

    Args:
      sampling_rate: Probability that a record is in the sample, 0 < rate <= 1.
      events: Of the mechanisms on the sample, at least one.

    Raises:
      ValueError: A rate out of range, or no event.
    """
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"Expected 0 < sampling_rate <= 1, got sampling_rate={sampling_rate}")
    parts = tuple(events)
    if not parts:
        raise ValueError("Expected at least one event on the sample, got none")
    inner = parts[0] if len(parts) == 1 else dp.ComposedDpEvent(parts)
    return canonical(dp.PoissonSampledDpEvent(float(sampling_rate), inner))


def no_guarantee(reason: str) -> DpEvent:
    """The event of a release without privacy; epsilon is then infinite. The reason is recorded."""
    if not reason:
        raise ValueError("Expected a reason for a release without privacy, got an empty one")
    return NoGuaranteeDpEvent(reason)


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


_COMPOSITIONS = (dp.ComposedDpEvent, dp.SelfComposedDpEvent)


def _as_one(event: DpEvent) -> DpEvent:
    """A composition of Gaussian mechanisms as the one that costs as much; others as they are."""
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
    """Whether an event gives any guarantee at all (no noise is no guarantee)."""
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
