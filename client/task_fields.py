"""Parse a task's fields as typed values before anything else; refuse by name what does not fit.

A server may send any records, and any values in them. Here each kind of task has a list of its records and fields,
each field a form: its type, its length, its range. What is not on the list is refused as what is missing is. Tensors
are read by :mod:`client.task_arrays`, once the model tells their names and shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flwr.app import Message

from fedllm import messages as names
from fedllm.files.bounded_json import TooLarge, read_bounded, shortened
from fedllm.settings.experiment import Settings
from fedllm.settings.io import from_json
from fedllm.task_errors import TaskRefused

TRAIN, EVALUATE, QUERY = names.TRAIN, names.EVALUATE, names.QUERY
MOST_ROUNDS = 1_000_000
MOST_CANDIDATES = 4096
_DIGEST = re.compile(r"(?:[0-9a-f]{64})?")
_SEED = re.compile(r"(?:[0-9a-f]{32})?")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HEAD = re.compile(r"[^\x00]{0,65536}")
_SIGNATURE = re.compile(r"[^\x00]{0,4096}")
_FOLDER = re.compile(r"[^\x00]{0,4096}")


@dataclass(frozen=True)
class TaskFields:
    """The fields of one task.

    Attributes:
        settings: of the experiment; not yet held against the silo config.
        run_id, run_folder: of the run; the folder is used in a simulation alone.
        round, planned_rounds: of the task; 0 where it has none.
        backbone: SHA-256 of the server's weights; empty where it sent none.
        codec_version, codec_meta: the codec to encode by, or to keep.
        directions: seed of random directions; empty for none.
        clip: clipping norm of the round, with adaptive clipping.
        candidates: numbers of the layers to score.
    """

    settings: Settings
    run_id: str = ""
    run_folder: str = ""
    round: int = 0
    planned_rounds: int = 0
    backbone: str = ""
    codec_version: str = ""
    codec_meta: Mapping[str, Any] = field(default_factory=dict)
    directions: str = ""
    clip: float | None = None
    candidates: tuple[int, ...] = ()


def read_fields(message: Message, kind: str) -> TaskFields:
    """Return the fields of a task of this kind.

    Args:
        kind: the task's kind, a key of :data:`KINDS`.

    Raises:
        TaskRefused: a record or field is missing, is not one of such a task, or has another form.
        SettingsError: the settings are not valid, see :func:`fedllm.settings.io.from_json`.
    """
    records, required, optional = KINDS[kind]
    content: Any = message.content
    records |= {names.LEDGER}
    _check_names(f"records of a {kind} task", content, records, records - _MAY_LACK)
    config = content.config_records.get(names.CONFIG)
    if config is None:
        raise TaskRefused(f"Expected texts and numbers in the record {names.CONFIG!r} of a task")
    if names.LEDGER in content:
        _check_companion(content)
    for name in records - {names.CONFIG, names.LEDGER}:
        if name in content and name not in content.array_records:
            raise TaskRefused(f"Expected arrays in the record {name!r} of a {kind} task")
    _check_names(f"fields of a {kind} task", config, required | optional, required)
    found: dict[str, Any] = {}
    for name, value in config.items():
        attribute, form = _FORMS[name]
        if not isinstance(form, _Text):
            found[attribute] = form(name, value)
            continue
        if type(value) is not str or (form.pattern and form.pattern.fullmatch(value) is None):
            raise TaskRefused(f"Expected {form.expected} in {name}, got {shortened(value)}")
        found[attribute] = value
    found["settings"] = from_json(found["settings"])
    return TaskFields(**found)


def is_run_id(value: Any) -> bool:
    """Return True if this is a run's id as a task may name it."""
    return type(value) is str and _RUN_ID.fullmatch(value) is not None


def _check_companion(content: Any) -> None:
    """Check the fields that accompany any task: the last signed head of the silo's ledger, and the report's delta."""
    companion = content.config_records.get(names.LEDGER)
    if companion is None:
        raise TaskRefused(f"Expected texts and numbers in the record {names.LEDGER!r} of a task")
    _check_names("fields beside a task", companion, frozenset(_COMPANION), frozenset())
    for name, value in companion.items():
        form = _COMPANION[name]
        if not isinstance(form, _Text):
            form(name, value)
        elif type(value) is not str or (form.pattern and form.pattern.fullmatch(value) is None):
            raise TaskRefused(f"Expected {form.expected} in {name}, got {shortened(value)}")


def _check_names(what: str, given: Any, known: frozenset[str], needed: frozenset[str]) -> None:
    names_given = list(given)
    if not (needed <= set(names_given) <= known):
        told = ", ".join(shortened(name) for name in sorted(names_given)[:12])
        more = f" and {len(names_given) - 12} more" if len(names_given) > 12 else ""
        raise TaskRefused(
            f"Expected the {what}: {', '.join(sorted(needed))}"
            + (f" (and perhaps {', '.join(sorted(known - needed))})" if known - needed else "")
            + f"; got {told or 'none'}{more}"
        )


class _Text(NamedTuple):
    """A text that matches a pattern; None: any."""

    pattern: re.Pattern[str] | None
    expected: str


def _settings(name: str, value: Any) -> str:
    if type(value) is not str:
        raise TaskRefused(f"Expected JSON text in {name}, got {shortened(value)}")
    return value


def _meta(name: str, value: Any) -> Mapping[str, Any]:
    try:
        found = read_bounded(_settings(name, value), "a codec's description")
    except TooLarge as error:
        raise TaskRefused(str(error)) from None
    if not isinstance(found, dict):
        raise TaskRefused(f"Expected a codec's description in {name}, got {shortened(found)}")
    return found


def _whole(least: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if type(value) is not int or not least <= value <= MOST_ROUNDS:
            raise TaskRefused(
                f"Expected a whole number from {least} to {MOST_ROUNDS} in {name}, got {shortened(value)}"
            )
        return value

    return read


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        raise TaskRefused(f"Expected a finite number > 0 in {name}, got {shortened(value)}")
    return float(value)


def _layers(name: str, value: Any) -> tuple[int, ...]:
    good = isinstance(value, list) and len(value) <= MOST_CANDIDATES
    if not good or any(type(layer) is not int or not 0 <= layer <= 2**31 for layer in value):
        raise TaskRefused(
            f"Expected at most {MOST_CANDIDATES} layer numbers >= 0 in {name}, got {shortened(value)}"
        )
    return tuple(value)


_FORMS: dict[str, tuple[str, _Text | Callable[[str, Any], Any]]] = {
    names.SETTINGS: ("settings", _Text(None, "JSON text")),
    names.RUN_ID: (
        "run_id",
        _Text(_RUN_ID, "a run's id (at most 128 letters, digits, dots, dashes and underscores)"),
    ),
    names.RUN_FOLDER: ("run_folder", _Text(_FOLDER, "a path of at most 4096 characters")),
    names.ROUND: ("round", _whole(0)),
    names.PLANNED_ROUNDS: ("planned_rounds", _whole(0)),
    names.BACKBONE: ("backbone", _Text(_DIGEST, "64 hexadecimal digits, or none,")),
    names.CODEC_VERSION: ("codec_version", _Text(_DIGEST, "64 hexadecimal digits, or none,")),
    names.CODEC_META: ("codec_meta", _meta),
    names.DIRECTIONS: ("directions", _Text(_SEED, "32 hexadecimal digits, or none,")),
    names.CLIP: ("clip", _number),
    names.CANDIDATES: ("candidates", _layers),
}


def _share(name: str, value: Any) -> float:
    if type(value) is not float or not 0 < value < 1:
        raise TaskRefused(f"Expected a number between 0 and 1 in {name}, got {shortened(value)}")
    return value


_COMPANION: dict[str, _Text | Callable[[str, Any], Any]] = {
    names.HEAD: _Text(_HEAD, "a signed text of at most 65536 characters"),
    names.HEAD_SIGNATURE: _Text(_SIGNATURE, "a signature of at most 4096 characters"),
    names.DELTA: _share,
}

_OF_ROUNDS = frozenset(
    {names.SETTINGS, names.RUN_ID, names.RUN_FOLDER, names.ROUND, names.PLANNED_ROUNDS}
)
_BESIDE = frozenset({names.BACKBONE, names.CODEC_VERSION, names.DIRECTIONS})
_MAY_LACK = frozenset({names.DUPLICATE, names.LEDGER})
_WITH_PARAMS = frozenset({names.CONFIG, names.PARAMS})

KINDS: dict[str, tuple[frozenset[str], frozenset[str], frozenset[str]]] = {
    TRAIN: (_WITH_PARAMS | {names.DUPLICATE}, _OF_ROUNDS, _BESIDE | {names.CLIP}),
    EVALUATE: (_WITH_PARAMS, _OF_ROUNDS, _BESIDE),
    names.ASK_STATISTICS: (_WITH_PARAMS, _OF_ROUNDS, _BESIDE),
    names.ASK_SCORES: (_WITH_PARAMS, _OF_ROUNDS | {names.CANDIDATES}, _BESIDE),
    names.SEND_CODEC: (
        frozenset({names.CONFIG, names.CODEC}),
        frozenset({names.SETTINGS, names.CODEC_META, names.CODEC_VERSION}),
        frozenset(),
    ),
    names.ASK_EXTRACT: (
        frozenset({names.CONFIG}),
        frozenset({names.SETTINGS, names.RUN_ID}),
        frozenset(),
    ),
    QUERY: (frozenset({names.CONFIG}), frozenset({names.SETTINGS}), frozenset({names.BACKBONE})),
}
"""Records (besides the ledger's), required fields and optional fields of each kind of task."""
