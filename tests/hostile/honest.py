"""Honest tasks of each kind, which the hostile ones change in one place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from client.task_fields import EVALUATE, QUERY, TRAIN, KindForm, form_of
from fedllm import messages as names
from fedllm.codec import Codec
from fedllm.codec.random_projection import RandomProjection
from fedllm.settings.experiment import Settings
from fedllm.settings.io import parse_settings, to_json
from fedllm.silo.extensions.factory import make_silo_extensions
from fedllm.training.black_box.directions import round_seed
from fedllm.training.tunable import initial_params, shared_tunable, trained_size
from simulations.benchmarks.support import tiny

from .silo import HostedSilo

KINDS = (
    TRAIN,
    EVALUATE,
    names.ASK_STATISTICS,
    names.ASK_SCORES,
    names.SEND_CODEC,
    names.ASK_EXTRACT,
    QUERY,
)
OF_KIND: dict[str, dict[str, Any]] = {
    EVALUATE: {"evaluation.clients": "private", "evaluation.clients_holdout": 0.2},
    names.ASK_STATISTICS: {"codec.name": "linear", "codec.ratio": 4.0, "codec.prior": "layerwise"},
    names.ASK_SCORES: {"layers.form": "private", "layers.keep": 1},
    names.SEND_CODEC: {"codec.name": "random-projection", "codec.ratio": 4.0},
}
"""Settings that make a task of this kind one that the silo answers."""

Change = Callable[[dict[str, Any]], None]
"""Changes the parts of a task (see :func:`parts`) in place."""


def settings_for(silo: HostedSilo, kind: str, **changes: Any) -> Settings:
    """Settings of the tiny experiment with which a task of this kind is answered."""
    key = ("settings", kind, repr(sorted(changes.items())))
    if key in silo.made:
        return silo.made[key]  # type: ignore[no-any-return]
    asked = {
        "privacy.epsilon": None,
        "privacy.randomness": "os",
        "server.rounds": 3,
        **OF_KIND.get(kind, {}),
        **changes,
    }
    silo.made[key] = made = parse_settings(tiny.tree(silo.backbone, silo.data.parent, **asked))
    return made


def start_of(settings: Settings) -> dict[str, Tensor]:
    """The parameters that training starts from."""
    return initial_params(shared_tunable(settings), settings)


def codec_of(settings: Settings) -> Codec:
    """The codec of the settings of :data:`OF_KIND`."""
    dimension = trained_size(shared_tunable(settings))
    return RandomProjection(dimension, int(dimension / settings.codec.ratio), 3)


def parts(silo: HostedSilo, kind: str, settings: Settings) -> dict[str, Any]:
    """A task's records: fields as a dictionary under ``config``, tensors as one under each other name."""
    fields: dict[str, Any] = {names.SETTINGS: to_json(settings)}
    found: dict[str, Any] = {names.CONFIG: fields}
    if kind == names.ASK_EXTRACT:
        fields[names.RUN_ID] = silo.new_run()
    if kind in (QUERY, names.ASK_EXTRACT):
        return found
    if kind == names.SEND_CODEC:
        codec = codec_of(settings)
        tensors, meta = codec.state()
        fields |= {names.CODEC_META: json.dumps(meta), names.CODEC_VERSION: codec.version}
        return found | {names.CODEC: dict(tensors)}
    fields |= {
        names.RUN_ID: silo.new_run(),
        names.RUN_FOLDER: "/not/here",
        names.ROUND: 1,
        names.PLANNED_ROUNDS: 3,
        names.BACKBONE: "",
    }
    if kind == names.ASK_SCORES:
        fields[names.CANDIDATES] = [0, 1]
    if settings.model.access == "black-box":
        fields[names.DIRECTIONS] = round_seed(7, "run", 1)
    if settings.clipping.form == "adaptive":
        fields[names.CLIP] = 0.5
    return found | {names.PARAMS: dict(start_of(settings))}


def form_of_kind(kind: str, **changes: Any) -> KindForm:
    """The records and fields of an honest task of this kind."""
    asked = {"privacy.epsilon": None, **OF_KIND.get(kind, {}), **changes}
    settings = parse_settings(tiny.tree(Path("model"), Path("data"), **asked))
    return form_of(kind, make_silo_extensions(settings))


def message_of(kind: str, records: Mapping[str, Any]) -> Message:
    """The task with these parts; a part that is a record already stays as it is."""
    content = RecordDict()
    for name, part in records.items():
        if isinstance(part, dict):
            whole = name == names.CONFIG
            content[name] = ConfigRecord(part) if whole else _arrays(part)
        else:
            content[name] = part
    return Message(content, dst_node_id=5, message_type=kind)


def _arrays(part: Mapping[str, Any]) -> ArrayRecord:
    record = ArrayRecord({n: v for n, v in part.items() if isinstance(v, torch.Tensor)})
    for name, value in part.items():
        if not isinstance(value, torch.Tensor):
            record[name] = value
    return record
