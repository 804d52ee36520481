"""Find which silo a Flower node serves, and where its data and ledger are.

A node with a silo config (:mod:`client.config`) serves that silo: data, ledger, budget, limits,
model folder and device are the file's, and what a server says about them is not used. A node without
one is part of a simulation: its ``partition-id`` counts through the silos of the data settings.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Context

from client.config import SiloConfig, silo_config_of
from client.data_section import DataSection
from client.limits import check_limits, check_size, localised
from client.task_fields import TaskFields
from fedllm import __version__
from fedllm import messages as names
from fedllm.data.silos import Silo, load_federation, load_silo_file, with_columns
from fedllm.files.private import note
from fedllm.models.embedded import ModelError
from fedllm.models.loading.placement import resolve_device
from fedllm.models.memory import limit_device
from fedllm.run.folder import RunFolder, ledger_of
from fedllm.settings.experiment import Settings
from fedllm.settings.kinds import TASKS
from fedllm.silo.opened import open_silo_data
from fedllm.silo.process import shared_worker, use_threads
from fedllm.silo.silo import SiloWorker
from fedllm.task_errors import NotTakingPart, TaskRefused, refusing
from fedllm.training.memory import require_room_for_training
from fedllm.training.tunable import shared_tunable

log = logging.getLogger("fedllm.client")
T = TypeVar("T")


def silo_of(settings: Settings, context: Context) -> Silo | None:
    """Return the node's silo, or None for a node beyond the number of silos.

    Raises:
        DataError: the data cannot be read or divided.
        SiloConfigError: the silo config is not valid.
    """
    own = silo_config_of(context.node_config)
    if own is not None:
        return configured_silo(own, settings)
    return _simulated(settings, context)


def _simulated(settings: Settings, context: Context) -> Silo | None:
    silos = load_federation(settings).silos
    place = int(context.node_config.get("partition-id", -1))
    return silos[place] if 0 <= place < len(silos) else None


def configured_silo(own: SiloConfig, settings: Settings) -> Silo:
    """Return the silo of a silo config, with the experiment's names for its columns.

    Raises:
        DataError: as :func:`fedllm.data.silos.load_silo_file`.
    """
    status = Path(own.data.path).stat() if Path(own.data.path).exists() else None
    version = None if status is None else (status.st_mtime_ns, status.st_size)
    silo = _load(own.name, own.data, version)
    task = settings.task
    new = dict(zip(own.data.text, task.text, strict=True))
    return with_columns(silo, new | {own.data.target: task.target})


@lru_cache(maxsize=2)
def _load(name: str, data: DataSection, version: Any) -> Silo:
    """Load the silo's data, once for the same file on disk."""
    return load_silo_file(
        data.path,
        name,
        text=data.text,
        target=data.target,
        labels=data.labels,
        form=data.form,
        separator=data.separator,
        encoding=data.encoding,
        delimiter=data.delimiter,
        bad_rows=data.bad_rows,
        holdout=data.holdout,
        holdout_seed=data.holdout_seed,
    )


def open_silo(fields: TaskFields, context: Context) -> SiloWorker:
    """Return the worker of this node's silo for a task.

    Raises:
        NotTakingPart: the silo's data cannot be read.
        LimitRefused: the silo's own limits do not allow the task; nothing was read or recorded.
        ValueError: the node has no silo.
    """
    own = silo_config_of(context.node_config)
    if own is not None:
        return _open_own(own, fields)
    settings, folder = fields.settings, Path(fields.run_folder)
    use_threads(settings.simulation.threads)
    silo = _read(lambda: _simulated(settings, context))
    if silo is None:
        raise TaskRefused("Expected a silo for this node, its partition-id has none")
    return shared_worker(
        settings,
        silo,
        run=fields.run_id,
        ledger=ledger_of(settings, folder),
        log=RunFolder(folder, fields.run_id, settings).silo_log_path(silo.name),
    )


def _open_own(own: SiloConfig, fields: TaskFields) -> SiloWorker:
    settings = admitted(own, fields)
    ledger = Path(own.ledger)
    ledger.parent.mkdir(parents=True, exist_ok=True)
    silo = _read(lambda: configured_silo(own, settings), own)
    return shared_worker(
        settings,
        silo,
        run=fields.run_id,
        ledger=ledger,
        log=None if own.log is None else Path(own.log),
        own=own.local_policy(),
        identity=own.identity(),
        heads=own.kept_heads,
    )


def admitted(own: SiloConfig, fields: TaskFields) -> Settings:
    """Return the settings of a task on the silo's own terms, once they keep to its limits and fit its model; reads no
    data.

    Raises:
        LimitRefused: the silo's own limits do not allow the task.
        TaskRefused: the settings do not fit the model.
        ModelError, DeviceMemoryError: as :func:`check_backbone`.
    """
    check_limits(
        own,
        fields.settings,
        server_round=fields.round,
        planned_rounds=fields.planned_rounds,
    )
    settings = localised(own, fields.settings)
    use_folders(own)
    use_threads(settings.simulation.threads)
    with refusing():
        check_backbone(own, settings, fields.backbone)
    return settings


def _read(read: Callable[[], T], own: SiloConfig | None = None) -> T:
    """Return the result of ``read``.

    Raises:
        NotTakingPart: it raises; why is in the process's log, and in that of the silo config.
    """
    try:
        return read()
    except Exception as error:
        log.error("the data cannot be used: %s", error, exc_info=error)
        if own is not None and own.log:
            note(Path(own.log), {"what": "the data cannot be used", "error": str(error)})
        raise NotTakingPart from error


def use_folders(own: SiloConfig) -> None:
    """Let this process keep converted models, codecs and the hub's files where the silo says."""
    if own.cache is not None:
        os.environ["FEDLLM_CACHE"] = own.cache
        os.environ.setdefault("HF_HOME", str(Path(own.cache) / "hub"))


def check_backbone(own: SiloConfig, settings: Settings, server: str) -> None:
    """Check that the silo's copy of the frozen model has the weights that it must have; loads it.

    Args:
        server: SHA-256 of the server's weights; empty where it sent none.

    Raises:
        LimitRefused: more is trained than the silo allows.
        ModelError: it cannot be loaded, or its digest is not the server's, or not that of ``model.sha256`` of
            the silo config.
        DeviceMemoryError: it does not fit the device.
    """
    if settings.endpoint.active:
        return  # nobody here holds the model
    device = resolve_device(settings.model.device)
    if own.model.memory is not None:
        limit_device(device, own.model.memory)
    tunable = shared_tunable(settings)
    check_size(own, settings, tunable)
    found = tunable.backbone.weights_digest
    for wanted, whose in (
        (server, "the server's"),
        (own.model.sha256, "model.sha256 of the silo's file"),
    ):
        if wanted and found != wanted:
            raise ModelError(
                f"Expected weights of SHA-256 {wanted} ({whose}), the silo's copy of the model has {found} "
                "(of the loaded weights, not of a file): another model, or another version of it"
            )
    require_room_for_training(settings, tunable)


def describe_node(fields: TaskFields, context: Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return texts and numbers that the node tells about itself; sizes only where they are public.

    A silo with its own config loads its model here, before the first round, and compares it.

    Raises:
        NotTakingPart: the silo's data cannot be read or used.
        LimitRefused, ModelError, DeviceMemoryError: as :func:`admitted`.
    """
    own = silo_config_of(context.node_config)
    settings = fields.settings if own is None else admitted(own, fields)
    silo, examples = _opened(settings, context)
    info: dict[str, Any] = {
        names.SILO: silo.name if silo else "",
        names.STATUS: names.OK if silo else names.IDLE,
        names.REASON: "",
        "version": __version__,
        "device": str(resolve_device(settings.model.device)),
        "tasks": ",".join(TASKS),
        "units": "example,client",
    }
    numbers: dict[str, Any] = {}
    if silo and settings.data.sizes == "public":
        numbers[names.EXAMPLES] = examples
    return info, numbers


def _opened(settings: Settings, context: Context) -> tuple[Silo | None, int]:
    """Return the node's silo, and the number of its training examples that can be used; None and 0 for no silo.

    Raises:
        NotTakingPart: its data cannot be read or used; why is in the process's log.
    """
    own = silo_config_of(context.node_config)
    silo = _read(lambda: silo_of(settings, context), own)
    if silo is None:
        return None, 0
    task = shared_tunable(settings).task
    return silo, len(_read(lambda: open_silo_data(silo, settings.data.bad_rows, task), own).train)
