"""Run an experiment on Flower's Ray engine, in this process, with a live view; or continue with one."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedllm.budget.evaluation_choice import decide_evaluation
from fedllm.budget.plan import for_silos
from fedllm.data.public import evaluation_set
from fedllm.data.repeated_records import warnings_of_repeats
from fedllm.data.silos import Federation, load_federation
from fedllm.data.suspicious import warnings_of_missing
from fedllm.run.data_digests import same_data
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.silo.check_all import require_usable
from fedllm.training.tunable import shared_tunable
from server.monitoring import Callback
from server.run import FINISHED, STOPPED, run_experiment

CHANGED_DATA = (
    "the run went on with other data than it was begun with (`fedllm resume --changed-data`): a record's guarantee is over "
    "all rounds in which it was among the data, before and after"
)


def prepare(settings: Settings) -> Settings:
    """Load data and model once, so that what is wrong with them shows before a run folder is made.

    Returns:
        The settings of the run: with ``evaluation.clients`` decided.

    Raises:
        ValueError: RAY_ADDRESS is set, or the data, the model or the settings are not usable, alone or with these silos; the
            message says why.
    """
    require_own_engine()
    settings = decide_evaluation(settings)
    federation = load_federation(settings)
    for_silos(settings, federation.names)
    task = shared_tunable(settings).task
    task.features(evaluation_set(settings).records)
    require_usable(federation.silos, settings.data.bad_rows, task)
    return settings


def simulate(
    run: RunFolder, callbacks: Sequence[Callback] = (), *, changed_data: bool = False
) -> str:
    """Train until the run ends, is interrupted (Ctrl-C) or fails; the status is returned.

    The first Ctrl-C gives up the round in progress and keeps all finished ones; ``resume`` continues.

    Args:
        changed_data: whether to go on with other data than the run was begun with.

    Raises:
        DataError: the data cannot be read or divided, or a silo has records that cannot be used.
        RunFolderError: the data are not those that the run was begun with.
        RuntimeError: Flower's engine failed.
    """
    require_own_engine()
    settings = run.settings()
    _quiet()
    federation = load_federation(settings)
    nodes = len(federation.silos)
    notes = begin_data(run, federation, changed_data)
    stop = threading.Event()
    outcome: dict[str, Any] = {"status": "failed"}
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        outcome["status"] = run_experiment(
            grid, run, stop=stop, expected_nodes=nodes, callbacks=callbacks, notes=notes
        )

    from flwr.simulation import run_simulation

    from client.app import app as client_app

    previous = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and callable(previous):
            previous(number, frame)
        stop.set()

    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, interrupt)
    try:
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=nodes,
            backend_config=backend_config(settings, nodes),
        )
    finally:
        if in_main:
            signal.signal(signal.SIGINT, previous)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return str(outcome["status"])


def begin_data(run: RunFolder, federation: Federation, changed_data: bool = False) -> list[str]:
    """Check a simulated run's data before it begins or goes on, and warn of what is suspicious in them.

    The warnings count private records: they are for the terminal of whoever holds all data, and in no file of the run.

    Returns:
        What the run's record has to tell of the data.

    Raises:
        DataError: a silo has records that cannot be used.
        RunFolderError: the data are not those that the run was begun with, and ``changed_data`` is False.
    """
    settings = run.settings()
    task, columns = shared_tunable(settings).task, settings.task.columns
    require_usable(federation.silos, settings.data.bad_rows, task)
    data = {silo.name: (silo.train, silo.held_out) for silo in federation.silos}
    changed = same_data(
        run.path,
        data | {"the server's evaluation": (federation.evaluation,)},
        begun=run.state()["status"] != "created",
        accept=changed_data,
    )
    texts = columns.names if columns.form == "text" else columns.text
    for sentence in (
        *warnings_of_missing([silo.train for silo in federation.silos], texts),
        *warnings_of_repeats(federation.silos, columns.names),
    ):
        logging.getLogger(__name__).warning("Warning: %s", sentence)
    return [CHANGED_DATA] if changed else []


def require_own_engine() -> None:
    """Refuse an environment that sends Ray to a cluster of another program.

    Raises:
        ValueError: RAY_ADDRESS names one. Ray itself tries for minutes before it says so.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local"):
        raise ValueError(
            "Expected no RAY_ADDRESS in the environment (a simulation starts its own engine), got "
            f"RAY_ADDRESS={address}; unset it, or set it to `local`"
        )


def backend_config(settings: Settings, nodes: int) -> Any:
    """Return Flower's configuration of the Ray engine: one CPU slot is one worker process."""
    simulation = settings.simulation
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = simulation.workers or max(1, (cores or 1) // simulation.threads)
    workers = min(workers, nodes)
    return {
        "init_args": {
            "num_cpus": workers,
            "include_dashboard": False,
            "logging_level": logging.ERROR,
            "log_to_driver": False,
        },
        "client_resources": {"num_cpus": 1, "num_gpus": simulation.gpus_per_worker},
    }


def _quiet() -> None:
    """Silence Flower's and Ray's output, which would break the live view; their errors are still shown."""
    for name, value in {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_DEDUP_LOGS": "0",
        "RAY_worker_niceness": "0",  # by default Ray runs workers at 15: starved by anything else
    }.items():
        os.environ.setdefault(name, value)
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:  # the worker processes import client.app
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])
    logging.getLogger("flwr").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def succeeded(status: str) -> bool:
    """Return True if the run came to its end: all rounds, or as many as the budget allowed."""
    return status in (FINISHED, STOPPED)
