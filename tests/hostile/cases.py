"""All tasks of a hostile server: each one an honest task with one thing changed."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, Message

from client.task_fields import EVALUATE, QUERY, TRAIN
from fedllm import messages as names

from .arrays import hostile_arrays
from .codecs import honest_states, hostile_states, with_state
from .fields import ANY, FEW, hostile_fields, hostile_records, settings_texts
from .honest import KINDS, message_of, parts, settings_for
from .settings import BLACK_BOX, TEXTS_ALONE, tampered_settings
from .silo import HostedSilo


@dataclass(frozen=True)
class Case:
    """One hostile task.

    Attributes:
        kind: of the task.
        field: what of it was changed: a field, a record, "settings", ...
        what: is wrong with it.
        build: the task, for a silo.
        may_answer: whether an answer with a row is right as well as a refusal: what was changed is something that a
            server may choose, within the silo's limits.
    """

    kind: str
    field: str
    what: str
    build: Callable[[HostedSilo], Message]
    may_answer: bool = False

    def __str__(self) -> str:
        return f"{self.kind} / {self.field} / {self.what[:60]}"


def all_cases(silo: HostedSilo, few: bool = False) -> Iterator[Case]:
    """Every case; a silo is needed for the model's shapes.

    Args:
        few: leave out what another kind of task has in the same words: fields of the same form, the same arrays, the
            same texts in the place of settings.
    """
    for kind in KINDS:
        less = few and kind != TRAIN
        for field, what, change, fine in (*hostile_fields(kind, less), *hostile_records(kind)):
            yield Case(kind, field, what, _changed(kind, change), fine)
        yield from _settings(kind, less)
        if kind not in (QUERY, names.SEND_CODEC, names.ASK_EXTRACT) and not (
            less and kind != EVALUATE
        ):
            for what, change_arrays, fine in hostile_arrays():
                yield Case(
                    kind, names.PARAMS, what, _arrays(kind, names.PARAMS, change_arrays), fine
                )
    yield from _codecs(silo)
    yield from _extras(few)
    yield from _of_training(few)


def _changed(kind: str, change: Callable[[dict[str, Any]], Any], **asked: Any) -> Any:
    def build(silo: HostedSilo) -> Message:
        found = parts(silo, kind, settings_for(silo, kind, **asked))
        change(found)
        return message_of(kind, found)

    return build


def _arrays(kind: str, record: str, change: Callable[[dict[str, Any]], Any], **asked: Any) -> Any:
    def put(found: dict[str, Any]) -> None:
        tensors = dict(found[names.PARAMS])
        change(tensors)
        found[record] = tensors

    return _changed(kind, put, **asked)


def _settings(kind: str, few: bool = False) -> Iterator[Case]:
    for what, text in () if few else settings_texts():
        yield Case(kind, "settings", what, _changed(kind, _text(text)))
    for what, (section, key, value) in () if few else TEXTS_ALONE.items():
        build = _changed(kind, _entry(section, key, value))
        yield Case(kind, "settings", what, build, what == "truth")  # it counts as 1
    for what, changes in tampered_settings(kind):
        yield Case(kind, "settings", what, _changed(kind, _tampered(changes)), may_answer=True)


def _tampered(changes: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """As the server writes them, whether or not they are settings at all, with what such a task brings."""

    def change(found: dict[str, Any]) -> None:
        tree = json.loads(found[names.CONFIG][names.SETTINGS])
        for name, value in changes.items():
            section, _, key = name.rpartition(".")
            (tree[section] if section else tree)[key] = value
        found[names.CONFIG][names.SETTINGS] = _dumps(tree)
        if tree["model"]["access"] == "black-box":
            found[names.CONFIG][names.DIRECTIONS] = "0" * 32
        if tree["clipping"]["form"] == "adaptive":
            found[names.CONFIG][names.CLIP] = 0.5

    return change


def _text(text: str) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        found[names.CONFIG][names.SETTINGS] = text

    return change


def _entry(section: str, key: str | None, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        tree = json.loads(found[names.CONFIG][names.SETTINGS])
        if key is None:
            tree[section] = value
        else:
            tree[section][key] = value
        found[names.CONFIG][names.SETTINGS] = _dumps(tree)

    return change


def _dumps(tree: Any) -> str:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(tree)
    finally:
        sys.set_int_max_str_digits(before)


def _codecs(silo: HostedSilo) -> Iterator[Case]:
    kind = names.SEND_CODEC
    for name, (asked, (tensors, meta)) in honest_states(silo).items():

        def put(found: dict[str, Any], tensors: Any, meta: Any) -> None:
            with_state(found, tensors, meta)

        def honest(found: dict[str, Any], state: Any = (tensors, meta)) -> None:
            put(found, *state)

        yield Case(kind, f"codec {name}", "as it is", _changed(kind, honest, **asked), True)
        yield Case(
            kind, f"codec {name}", "not asked for", _changed(kind, honest, **{"codec.name": "none"})
        )
        for what, change in hostile_states(name):

            def hostile(
                found: dict[str, Any], state: Any = (tensors, meta), change: Any = change
            ) -> None:
                changed = dict(state[0]), copy.deepcopy(state[1])
                change(*changed)
                put(found, *changed)

            yield Case(
                kind,
                f"codec {name}",
                what,
                _changed(kind, hostile, **asked),
                what == "another seed",
            )

    def identity(found: dict[str, Any]) -> None:
        with_state(found, {"more": torch.zeros(5_000_000)}, {"name": "none", "dimension": 1})

    yield Case(kind, "codec none", "20 MB of a foreign tensor", _changed(kind, identity))
    deep: dict[str, Any] = {"name": "none", "dimension": 1}
    for _ in range(400):
        deep = {"name": "quantised", "bits": 8, "inner": deep}
    for what, described in {
        "400 deep": deep,
        "a list": [1],
        "no JSON": "{",
        "a key twice": '{"name": "none", "name": "fp16"}',
        "an infinite number": '{"name": "none", "dimension": Infinity}',
        "two megabytes": '{"name": "' + "a" * (2 << 20) + '"}',
    }.items():

        def put_text(found: dict[str, Any], described: Any = described) -> None:
            with_state(found, {}, described)

        yield Case(kind, names.CODEC_META, what, _changed(kind, put_text))

    def other_version(found: dict[str, Any]) -> None:
        found[names.CONFIG][names.CODEC_VERSION] = "0" * 64

    yield Case(kind, names.CODEC_VERSION, "of another codec", _changed(kind, other_version))


WITH_EXTRAS: tuple[tuple[dict[str, Any], str, Any], ...] = (
    ({"clipping.form": "adaptive"}, names.CLIP, 0.5),
    (BLACK_BOX, names.DIRECTIONS, "0" * 32),
    ({"codec.name": "fp16"}, names.CODEC_VERSION, "0" * 64),
)
"""Settings whose task of training brings an extra, with its name and an honest value."""


def _extras(few: bool) -> Iterator[Case]:
    """Each extra of any type, without it, and unasked for."""
    for changes, name, honest in WITH_EXTRAS:
        for what, value in {**ANY, "empty text": ""}.items():
            if not few or what in FEW:
                fine = name == names.CLIP and what in ("whole number", "real number")
                yield Case(TRAIN, name, what, _changed(TRAIN, _field(name, value), **changes), fine)
        without = _changed(TRAIN, lambda found, n=name: found[names.CONFIG].pop(n, None), **changes)
        yield Case(TRAIN, name, "missing where it is asked for", without)
        for kind in (TRAIN, EVALUATE, names.ASK_STATISTICS, names.ASK_SCORES, QUERY):
            yield Case(kind, name, "not asked for", _changed(kind, _field(name, honest)))


def _of_training(few: bool) -> Iterator[Case]:
    """What only tasks of training (and rounds) bring."""
    raw = _arrays(TRAIN, names.DUPLICATE, lambda tensors: None)
    yield Case(TRAIN, names.DUPLICATE, "whole, not asked for", raw)
    for what, value in {"0": 0.0, "1e-300": 1e-300, "1e300": 1e300, "NaN": math.nan}.items():
        build = _changed(TRAIN, _field(names.CLIP, value), **{"clipping.form": "adaptive"})
        yield Case(TRAIN, names.CLIP, what, build)
    for what, value in {"none": "", "-1": "-" + "0" * 31, "of 16": "0" * 16}.items():
        build = _changed(TRAIN, _field(names.DIRECTIONS, value), **BLACK_BOX)
        yield Case(TRAIN, names.DIRECTIONS, what, build)
    for what, version in {"none": "", "nobody's": "0" * 64}.items():
        build = _changed(TRAIN, _field(names.CODEC_VERSION, version), **{"codec.name": "fp16"})
        yield Case(TRAIN, names.CODEC_VERSION, f"{what}, where one is needed", build)
    wrong = _changed(TRAIN, _field(names.BACKBONE, "0" * 64))
    yield Case(TRAIN, names.BACKBONE, "of another model", wrong)
    for kind in (TRAIN, EVALUATE, names.ASK_STATISTICS, names.ASK_SCORES):
        rounds = {"round 6 of 5 allowed": (6, 3), "6 planned": (1, 6), "none planned": (1, 0)}
        for what, (number, planned) in rounds.items():
            build = _changed(kind, _rounds(number, planned))
            yield Case(kind, names.ROUND, what, build, what == "none planned")
    for downlink in ("fp16", "int8"):
        build = _changed(TRAIN, lambda found: None, **{"codec.downlink": downlink})
        yield Case(TRAIN, names.PARAMS, f"float32 where {downlink} travels", build)
    for kind in (TRAIN, EVALUATE):
        both = _changed(kind, _as_empty)
        yield Case(kind, names.PARAMS, "an empty record", both)


def _as_empty(found: dict[str, Any]) -> None:
    found[names.PARAMS] = ArrayRecord()


def _field(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        found[names.CONFIG][name] = value

    return change


def _rounds(number: int, planned: int) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        found[names.CONFIG] |= {names.ROUND: number, names.PLANNED_ROUNDS: planned}

    return change
