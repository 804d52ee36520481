"""Hostile fields: each field of each kind of task, missing, of another type, empty, huge, negative, of another run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from fedllm import messages as names

from .honest import KINDS, Change, form_of_kind

MEGABYTE = "a" * 10**6
DEEP = "[" * 100_000 + "]" * 100_000

ANY: dict[str, Any] = {
    "whole number": 7,
    "real number": 0.5,
    "NaN": math.nan,
    "infinity": math.inf,
    "negative": -1,
    "huge number": 2**62,
    "truth": True,
    "bytes": b"\x80\x04K\x01.",
    "list of texts": ["a", "b"],
    "list of numbers": [1, 2],
    "empty list": [],
    "huge text": MEGABYTE,
    "path": "../../etc/passwd",
    "zero byte": "a\0b",
    "newline": "run-1\n",
    "nested": DEEP,
}
"""Values for any field; none of them is an honest value of any, but where ``GOOD`` says so."""
GOOD = {
    (names.ROUND, "whole number"),  # beyond the planned rounds, which the limit of the silo refuses
    (names.RUN_FOLDER, "path"),
    (names.RUN_FOLDER, "newline"),
    (names.RUN_FOLDER, "empty text"),
    (names.BACKBONE, "empty text"),
}
"""Fields and values that may be answered (the folder is not used at a silo of its own)."""


FEW = (
    "whole number",
    "NaN",
    "negative",
    "huge number",
    "bytes",
    "list of texts",
    "huge text",
    "path",
)
"""Of them, for kinds of task whose fields have the same forms as those of training."""


def hostile_fields(kind: str, few: bool = False) -> Iterator[tuple[str, str, Change, bool]]:
    """Field, what is wrong with it, the change of the task's parts, and whether an answer is right as well."""
    form = form_of_kind(kind)
    required = form.needed_fields
    for field in sorted(required | form.optional):
        if field in required:
            yield field, "missing", _without(field), False
        chosen = {what: ANY[what] for what in FEW} if few else ANY
        values = chosen | {"empty text": ""}
        for what, value in values.items():
            yield field, what, _with(field, value), (field, what) in GOOD
    yield "fields", "one more", _with("more", "x"), False
    yield "fields", "10,000 more", _many, False
    yield "fields", "a name of a megabyte", _with(MEGABYTE, 1), False
    if names.CANDIDATES in required:
        for what, value in {
            "twice": [0, 0],
            "descending": [1, 0],
            "beyond": [0, 99],
            "below zero": [-1, 0],
            "one": [0],
            "a million": list(range(10**6)),
            "real": [0.0, 1.0],
        }.items():
            yield names.CANDIDATES, what, _with(names.CANDIDATES, value), False


def hostile_records(kind: str) -> Iterator[tuple[str, str, Change, bool]]:
    """The same for whole records."""
    records = form_of_kind(kind).needed_records
    yield "records", "none", lambda parts: parts.clear(), False
    for record in sorted(records):
        yield record, "missing", _without_record(record), False
        yield record, "a record of numbers", _as(record, MetricRecord({"a": 1.0})), False
        yield record, "empty", _as(record, _empty(record)), record == names.CODEC
    yield names.CONFIG, "arrays", _as(names.CONFIG, ArrayRecord()), False
    for other in (names.PARAMS, names.CODEC, names.UPDATE, "more", MEGABYTE):
        if other not in records:
            yield "records", f"also {other[:8]}", _as(other, ConfigRecord({"a": "b"})), False
    head = {names.HEAD: "{}", names.HEAD_SIGNATURE: "AA==", names.DELTA: 1e-5}
    yield names.LEDGER, "a head of nobody", _as(names.LEDGER, ConfigRecord(head)), True
    for name in head:
        for what in ("NaN", "negative", "huge number", "bytes", "list of texts", "huge text"):
            wrong = ConfigRecord(head | {name: ANY[what]})
            yield names.LEDGER, f"{name}: {what}", _as(names.LEDGER, wrong), False
    yield names.LEDGER, "one more field", _as(names.LEDGER, ConfigRecord(head | {"a": 1})), False
    yield names.LEDGER, "arrays", _as(names.LEDGER, ArrayRecord()), False
    yield names.DUPLICATE, "not asked for", _as(names.DUPLICATE, ArrayRecord()), False


def _empty(record: str) -> Any:
    return ConfigRecord({}) if record == names.CONFIG else ArrayRecord()


def _without(field: str) -> Change:
    return lambda parts: parts[names.CONFIG].pop(field, None)


def _with(field: str, value: Any) -> Change:
    def change(parts: dict[str, Any]) -> None:
        parts[names.CONFIG][field] = value

    return change


def _many(parts: dict[str, Any]) -> None:
    parts[names.CONFIG] |= {f"more-{i}": i for i in range(10_000)}


def _without_record(record: str) -> Change:
    return lambda parts: parts.pop(record, None)


def _as(record: str, value: Any) -> Change:
    def change(parts: dict[str, Any]) -> None:
        parts[record] = value

    return change


def settings_texts() -> Iterator[tuple[str, str]]:
    """What is wrong with a text in the place of settings, and the text."""
    yield "no JSON", "{"
    yield "a list", "[]"
    yield "null", "null"
    yield "empty object", "{}"
    yield "deep", '{"a": ' * 5000 + "1" + "}" * 5000
    yield "a key twice", '{"seed": 1, "seed": 2}'
    yield "NaN", '{"seed": NaN}'
    yield "5,000 unknown keys", json.dumps({f"key{i}": 1 for i in range(5000)})
    yield "a number of 100,000 digits", '{"seed": ' + "9" * 100_000 + "}"
    yield "two megabytes", json.dumps({"name": "a" * (2 << 20)})
    yield "an unknown section", '{"secrets": {"read": true}}'


__all__ = ["ANY", "KINDS", "hostile_fields", "hostile_records", "settings_texts"]
