"""Refuse tasks beyond the silo's limits, before data are read or a row is written.

A server's settings are held against the silo config here, as far as they alone tell; what only the
calibrated mechanism tells (its noise, the sampling rate of a batch size, what is left of the budget) is
held against the same file by the silo's account (:mod:`fedllm.budget.local_policy`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from client.config import Quantity, SiloConfig
from fedllm.budget.local_policy import LimitRefused
from fedllm.settings.checks.black_box import noises_numbers
from fedllm.settings.experiment import Settings
from fedllm.training.tunable import Tunable, task_size


def check_limits(
    silo: SiloConfig, settings: Settings, *, server_round: int = 0, planned_rounds: int = 0
) -> None:
    """Check that an experiment and a task of it keep to the silo's limits.

    Reads no data: the answer depends on the settings and the silo's file alone.

    Args:
        settings: as the server sent them; the silo's own values in them hold (``Settings.for_silo``).
        server_round, planned_rounds: of the task; 0 where it has none.

    Raises:
        LimitRefused: it does not; every reason is in the message, with setting, limit and what was asked.
    """
    own = settings.for_silo(silo.name)
    problems = [
        *_kind(silo, own),
        *_amounts(silo, own, server_round, planned_rounds),
        *_names(silo, own),
        *_data(silo, own),
    ]
    if problems:
        raise LimitRefused(f"refused by the silo {silo.name}: " + "; ".join(problems))


def check_size(silo: SiloConfig, settings: Settings, tunable: Tunable) -> None:
    """Check the number of trained parameters against the silo's limit; make no tensor of that size.

    Raises:
        LimitRefused: more is.
    """
    size = task_size(tunable)
    if size > silo.limits.parameters:
        raise LimitRefused(
            f"refused by the silo {silo.name}: Expected at most {silo.limits.parameters} trained numbers "
            f"(limits.parameters), got {size}: lower adapter.rank or prefix.length, or the number of layers or task.labels"
        )


def needed_quantities(settings: Settings) -> dict[Quantity, str]:
    """Return the quantities that an experiment requests from a silo, each with the responsible setting."""
    asked: dict[Quantity, tuple[bool, str]] = {
        "update": (True, "training"),
        "size": (settings.data.sizes == "public", "data.sizes=public"),
        "evaluation": (
            settings.evaluation.by_silos,
            f"evaluation.clients={settings.evaluation.clients}",
        ),
        "statistics": (
            settings.codec.asks_silos,
            f"codec.prior_source={settings.codec.prior_source} with codec.name={settings.codec.name}",
        ),
        "layer-scores": (settings.layers.asks_silos, f"layers.form={settings.layers.form}"),
        "duplicate": (settings.teacher.kind == "nonprivate", "teacher.kind=nonprivate"),
    }
    return {quantity: setting for quantity, (needed, setting) in asked.items() if needed}


def localised(silo: SiloConfig, settings: Settings) -> Settings:
    """Return the settings with the silo's own values for local choices: model folder, device, number format, threads,
    memory, columns, holdout, bad rows; without any path that a server named."""
    model: dict[str, Any] = {"device": silo.model.device}
    if silo.model.path is not None:
        model |= {"name": silo.model.path, "revision": None, "gguf_file": None}
    if silo.model.dtype != "experiment":
        model["dtype"] = silo.model.dtype
    if silo.model.reuse_gib == 0:
        model["reuse"] = "off"
    else:
        model["reuse_gib"] = min(settings.model.reuse_gib, silo.model.reuse_gib)
    tokens = min(settings.client.max_tokens, silo.limits.max_tokens)
    threads = silo.model.threads or min(settings.simulation.threads, os.cpu_count() or 1)
    changed: dict[str, dict[str, Any]] = {
        "model": model,
        "client": {"max_tokens": tokens},
        "privacy": {"ledger": None},
        "simulation": {"threads": threads},
        "evaluation": {"clients_holdout": silo.data.holdout},
        "data": {"bad_rows": silo.data.bad_rows},
    }
    return settings.model_copy(
        update={
            section: getattr(settings, section).model_copy(update=values)
            for section, values in changed.items()
        }
    )


def _kind(silo: SiloConfig, own: Settings) -> Iterator[str]:
    """Check the kind of privacy and the adversary."""
    limits, privacy = silo.limits, own.privacy
    try:
        silo.local_policy().check_kind(own)
    except LimitRefused as error:
        yield str(error)
    mechanism: str = "none" if privacy.mode == "none" else privacy.mechanism
    if mechanism not in limits.mechanisms:
        asked = "privacy.mode=none" if mechanism == "none" else f"privacy.mechanism={mechanism}"
        yield _listed("privacy.mechanism", "mechanisms", limits.mechanisms, asked)
    if noises_numbers(own) and silo.budget.accountant != "pld":
        yield (
            "Expected budget.accountant=pld of the silo config for other than Gaussian noise on numbers "
            f"(else privacy.mechanism=gaussian), got budget.accountant={silo.budget.accountant}"
        )
    if own.client.max_batch is not None and silo.budget.accountant != "pld":
        yield (
            "Expected budget.accountant=pld of the silo config for client.max_batch (no other one represents "
            f"the truncated sample), got budget.accountant={silo.budget.accountant}"
        )
    if privacy.mode == "dp" and privacy.randomness not in limits.randomness:
        asked = f"privacy.randomness={privacy.randomness}"
        yield _listed("privacy.randomness", "randomness", limits.randomness, asked)
    if privacy.noise is not None and not privacy.noise.lstrip().startswith("{"):
        yield "Expected the noise itself in privacy.noise, got the name of a file on the silo's machine"
    for quantity, setting in needed_quantities(own).items():
        if quantity not in limits.quantities:
            yield _listed(
                "what leaves the silo", "quantities", limits.quantities, f"{quantity} ({setting})"
            )


def _amounts(
    silo: SiloConfig, own: Settings, server_round: int, planned_rounds: int
) -> Iterator[str]:
    """Check the amounts of privacy."""
    limits = silo.limits
    most: dict[str, tuple[float, float, str]] = {
        "server.rounds": (own.server.rounds, limits.rounds, "rounds"),
        "the planned rounds of the task": (planned_rounds, limits.rounds, "rounds"),
        "the round of the task": (server_round, limits.rounds, "rounds"),
        "client.local_steps": (own.client.local_steps, limits.local_steps, "local_steps"),
        "client.sampling_rate": (
            own.client.sampling_rate or 0.0,
            limits.sampling_rate,
            "sampling_rate",
        ),
        "task.max_length": (own.task.max_length, limits.max_length, "max_length"),
        "task.max_prompt": (own.task.max_prompt or 0, limits.max_length, "max_length"),
        "client.max_batch": (own.client.max_batch or 0, limits.max_batch, "max_batch"),
        "zeroth_order.directions": (
            own.zeroth_order.directions if own.model.access == "black-box" else 0,
            limits.directions,
            "directions",
        ),
    }
    for setting, (asked, limit, key) in most.items():
        if asked > limit:
            yield f"Expected {setting} <= {limit:g} (limits.{key}), got {asked:g}"
    if min(server_round, planned_rounds) < 0:
        yield f"Expected rounds >= 0 in a task, got {server_round} of {planned_rounds} planned"
    if own.privacy.mode == "none":
        return
    needed = needed_quantities(own)
    least: dict[str, tuple[bool, float | None]] = {
        "privacy.noise_multiplier": (True, own.privacy.noise_multiplier),
        "codec.statistics_noise": ("statistics" in needed, own.codec.statistics_noise),
        "evaluation.clients_noise": (
            own.evaluation.clients == "private",
            own.evaluation.clients_noise,
        ),
        "layers.noise": (own.layers.form == "private", own.layers.noise),
    }
    for setting, (used, noise) in least.items():
        if used and noise is not None and noise < limits.noise_multiplier:
            yield (
                f"Expected {setting} >= {limits.noise_multiplier:g} (limits.noise_multiplier), got {noise:g}"
            )


def _names(silo: SiloConfig, own: Settings) -> Iterator[str]:
    """Check the codec, and the model or endpoint."""
    limits = silo.limits
    if own.codec.name not in limits.codecs:
        yield _listed("codec.name", "codecs", limits.codecs, f"codec.name={own.codec.name}")
    if own.endpoint.active:
        if own.endpoint.url not in limits.endpoints:
            asked = f"endpoint.url={own.endpoint.url}"
            yield _listed("endpoint.url", "endpoints", limits.endpoints, asked)
        return
    known = any(fnmatchcase(own.model.name, pattern) for pattern in limits.models)
    if silo.model.path is None and not known:
        yield _listed("model.name", "models", limits.models, f"model.name={own.model.name}")


def _data(silo: SiloConfig, own: Settings) -> Iterator[str]:
    """Check that the experiment's task matches the silo's data, as its config describes them."""
    if len(own.task.text) != len(silo.data.text):
        yield (
            f"Expected {len(silo.data.text)} columns in task.text (data.text of the silo's file), got "
            f"{len(own.task.text)}"
        )
    holds = own.task.facts.holds
    if holds != silo.data.holds and not {holds, silo.data.holds} <= {"class", "text"}:
        yield (
            f"Expected a task of data.form={silo.data.holds} (of the silo's file), got task.kind={own.task.kind}, which "
            f"reads {holds}"
        )
    if own.task.template is not None and not silo.data.template:
        yield (
            "Expected no task.template (data.template=false in the silo's file: that of its copy of the model is used), "
            "got one"
        )
    if own.task.has_classes and not silo.data.labels:
        yield (
            "Expected a task without classes, such as task.kind=generation (no data.labels in the silo's "
            f"file), got task.kind={own.task.kind}"
        )
    if own.task.facts.names_labels:
        unknown = [label for label in silo.data.labels if label not in (own.task.labels or ())]
        if unknown:
            yield (
                "Expected every class of data.labels of the silo's file in task.labels, got none named "
                + ", ".join(unknown)
            )
    if own.evaluation.by_silos and silo.data.holdout == 0:
        yield (
            "Expected evaluation.clients=off (data.holdout=0 in the silo's file), got "
            f"evaluation.clients={own.evaluation.clients}"
        )


def _listed(what: str, key: str, allowed: tuple[str, ...], asked: str) -> str:
    return f"Expected {what} among {', '.join(allowed) or 'none'} (limits.{key}), got {asked}"
