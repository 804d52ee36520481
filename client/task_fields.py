"""Parse a task's fields as typed values before anything else; refuse by name what does not fit.

A server may send any records, and any values in them. Here each kind of task has a list of its records and fields,
each field a form: its type, its length, its range. What the optional parts of a run bring is listed by the silo's
extensions (:mod:`fedllm.silo.extensions.base`), which follow from the task's settings. What is not on a list is refused
as what is missing is. Tensors are read by :mod:`client.task_arrays`, once the model tells their names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import Message

from fedllm import messages as names
from fedllm.files.bounded_json import shortened
from fedllm.settings.experiment import Settings
from fedllm.settings.io import from_json
from fedllm.silo.extensions.base import SiloExtension
from fedllm.silo.extensions.factory import make_silo_extensions
from fedllm.silo.task_form import Read, TaskForm, json_text, share, text, whole
from fedllm.task_errors import TaskRefused

TRAIN, EVALUATE, QUERY = names.TRAIN, names.EVALUATE, names.QUERY
_DIGEST_OR_NONE = re.compile(r"(?:[0-9a-f]{64})?")
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
        extras: the plain values that optional parts of the run bring, by name.
    """

    settings: Settings
    run_id: str = ""
    run_folder: str = ""
    round: int = 0
    planned_rounds: int = 0
    backbone: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KindForm:
    """Records and fields of one kind of task; any may also have the record of the ledger's head.

    Attributes:
        records: of the message.
        required, optional: fields that every run has.
        extras: what the optional parts of the run bring.
    """

    records: frozenset[str]
    required: frozenset[str]
    optional: frozenset[str] = frozenset()
    extras: TaskForm = field(default_factory=TaskForm)

    @property
    def needed_records(self) -> frozenset[str]:
        """All records that it must have."""
        return self.records | self.extras.tensors

    @property
    def needed_fields(self) -> frozenset[str]:
        """All fields that it must have."""
        return self.required | frozenset(self.extras.fields)


_CONFIG_ALONE = frozenset({names.CONFIG})
_SETTINGS_ALONE = frozenset({names.SETTINGS})
_FIXED = {
    names.ASK_EXTRACT: KindForm(_CONFIG_ALONE, frozenset({names.SETTINGS, names.RUN_ID})),
    QUERY: KindForm(_CONFIG_ALONE, _SETTINGS_ALONE, frozenset({names.BACKBONE})),
}
_DELIVERY = KindForm(_CONFIG_ALONE, _SETTINGS_ALONE)
_EXCHANGE = KindForm(
    _CONFIG_ALONE,
    frozenset({names.SETTINGS, names.RUN_ID, names.RUN_FOLDER, names.ROUND, names.PLANNED_ROUNDS}),
    frozenset({names.BACKBONE}),
)
_OF_A_RUN = KindForm(
    frozenset({names.CONFIG, names.PARAMS}),
    frozenset({names.SETTINGS, names.RUN_ID, names.RUN_FOLDER, names.ROUND, names.PLANNED_ROUNDS}),
    frozenset({names.BACKBONE}),
)


def _plain(kind: str) -> KindForm:
    """The form of a kind of task that is not fixed, before the extras of its settings."""
    if kind.startswith(names.SEND):
        return _DELIVERY
    return _EXCHANGE if kind.startswith(names.EXCHANGE) else _OF_A_RUN


def form_of(kind: str, extensions: Sequence[SiloExtension]) -> KindForm:
    """Return the form of a task of this kind in a run with these optional parts.

    Raises:
        TaskRefused: no such run has tasks of this kind.
    """
    if kind in _FIXED:
        return _FIXED[kind]
    deliveries = {name: one for each in extensions for name, one in each.deliveries().items()}
    extras = TaskForm()
    for extension in extensions:
        extras |= extension.brings(kind)
    if kind in deliveries:
        records = _DELIVERY.records | {deliveries[kind].record}
        return KindForm(records, _DELIVERY.required, extras=extras)
    answered = {name for each in extensions for name in (*each.requests(), *each.exchanges())}
    if kind not in {TRAIN, *answered}:
        raise TaskRefused(f"Expected a task that the settings ask for, got {shortened(kind)}")
    return replace(_plain(kind), extras=extras)


def read_fields(message: Message, kind: str) -> TaskFields:
    """Return the fields of a task of this kind.

    Raises:
        TaskRefused: a record or field is missing, is not one of such a task, or has another form; or the settings ask
            for no such task.
        SettingsError: the settings are not valid, see :func:`fedllm.settings.io.from_json`.
    """
    content: Any = message.content
    plain = _FIXED.get(kind, _plain(kind))
    # What the settings cannot change first: the settings themselves are among it.
    _check_names(
        f"records of a {kind} task", _known(content, plain.records), plain.records, {names.LEDGER}
    )
    config = content.config_records.get(names.CONFIG)
    if config is None:
        raise TaskRefused(f"Expected texts and numbers in the record {names.CONFIG!r} of a task")
    if names.LEDGER in content:
        _check_companion(content)
    _check_names(f"fields of a {kind} task", _known(config, plain.required), plain.required)
    settings = from_json(json_text(names.SETTINGS, config[names.SETTINGS]))
    form = form_of(kind, make_silo_extensions(settings))
    _check_names(f"records of a {kind} task", content, form.needed_records, {names.LEDGER})
    for name in form.needed_records - {names.CONFIG}:
        if name not in content.array_records:
            raise TaskRefused(f"Expected arrays in the record {name!r} of a {kind} task")
    _check_names(f"fields of a {kind} task", config, form.needed_fields, form.optional)
    extras = {name: read(name, config[name]) for name, read in form.extras.fields.items()}
    found = {
        attribute: read(name, config[name])
        for name, (attribute, read) in _READERS.items()
        if name in config and name in form.required | form.optional
    }
    return TaskFields(settings=settings, extras=extras, **found)


def is_run_id(value: Any) -> bool:
    """Return True if this is a run's id as a task may name it."""
    return type(value) is str and _RUN_ID.fullmatch(value) is not None


def _check_companion(content: Any) -> None:
    """Check the fields that accompany any task: the last signed head of the silo's ledger, and the report's delta."""
    companion = content.config_records.get(names.LEDGER)
    if companion is None:
        raise TaskRefused(f"Expected texts and numbers in the record {names.LEDGER!r} of a task")
    _check_names("fields beside a task", companion, frozenset(), frozenset(_COMPANION))
    for name, value in companion.items():
        _COMPANION[name](name, value)


def _known(given: Any, known: frozenset[str]) -> list[str]:
    return [name for name in known if name in given]


def _check_names(
    what: str, given: Any, needed: frozenset[str], optional: Set[str] = frozenset()
) -> None:
    names_given, known = list(given), needed | optional
    if not (needed <= set(names_given) <= known):
        told = ", ".join(shortened(name) for name in sorted(names_given)[:12])
        more = f" and {len(names_given) - 12} more" if len(names_given) > 12 else ""
        raise TaskRefused(
            f"Expected the {what}: {', '.join(sorted(needed))}"
            + (f" (and perhaps {', '.join(sorted(known - needed))})" if known - needed else "")
            + f"; got {told or 'none'}{more}"
        )


_READERS: dict[str, tuple[str, Read]] = {
    names.RUN_ID: (
        "run_id",
        text(_RUN_ID, "a run's id (at most 128 letters, digits, dots, dashes and underscores)"),
    ),
    names.RUN_FOLDER: ("run_folder", text(_FOLDER, "a path of at most 4096 characters")),
    names.ROUND: ("round", whole(0)),
    names.PLANNED_ROUNDS: ("planned_rounds", whole(0)),
    names.BACKBONE: ("backbone", text(_DIGEST_OR_NONE, "64 hexadecimal digits, or none,")),
}
_COMPANION: dict[str, Read] = {
    names.HEAD: text(_HEAD, "a signed text of at most 65536 characters"),
    names.HEAD_SIGNATURE: text(_SIGNATURE, "a signature of at most 4096 characters"),
    names.DELTA: share,
}
