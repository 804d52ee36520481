"""Check and normalise privacy events; write and read them as the JSON of ledger rows.

Events of every kind that is known here; each other one is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent

from privacy.events.kinds import (
    DiscreteGaussianDpEvent,
    DiscreteGaussianSumDpEvent,
    NoGuaranteeDpEvent,
    PureDpEvent,
    ScalarNoiseDpEvent,
    VectorNoiseDpEvent,
)


class UnknownEvent(ValueError):
    """An event of a kind, or with a parameter, that cannot be written down or accounted."""


def _probability(value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError("expected a probability from 0 to 1")
    return number


def _number(value: Any) -> float:
    """Return a finite number >= 0; numpy scalars and ints become float."""
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
    """Return pairs (name, number) sorted by name; a name once."""
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
    "DiscreteGaussianSum": (
        DiscreteGaussianSumDpEvent,
        {"sigma": _number, "shares": _whole_positive, "sensitivity": _number},
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
