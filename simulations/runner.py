"""Run an experiment on this machine, in this process or on Flower's Ray engine; or continue with one."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedllm.api import require_packages
from fedllm.budget.evaluation_choice import decide_evaluation
from fedllm.budget.plan import for_silos
from fedllm.data.public import evaluation_set
from fedllm.data.repeated_records import warnings_of_repeats
from fedllm.data.silos import Federation, load_federation
from fedllm.data.suspicious import warnings_of_missing
from fedllm.run.data_digests import same_data
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.settings.sections import SimulationSettings
from fedllm.silo.check_all import require_usable
from fedllm.training.tunable import shared_tunable
from server.monitoring import Callback
from server.run import FAILED, FINISHED, STOPPED, run_experiment
from simulations.in_process import TurnGrid

CHANGED_DATA = (
    "the run went on with other data than it was begun with (`fedllm resume --changed-data`): a record's guarantee is over "
    "all rounds in which it was among the data, before and after"
)


def prepare(settings: Settings) -> Settings:
    """Load data and model once, so that what is wrong with them shows before a run folder is made.

    Returns:
        The settings of the run: with ``evaluation.clients`` decided.

    Raises:
        ValueError: the engine is Ray and it is not installed or RAY_ADDRESS is set, or the data, the model or the settings are not usable, alone or with these silos; the
            message says why.
    """
    if settings.simulation.engine == "ray":
        require_own_engine()
    settings = decide_evaluation(settings)
    federation = load_federation(settings)
    if settings.simulation.engine_for(len(federation.silos)) == "ray":
        require_own_engine()
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
        EngineFault: Flower's Ray engine could not start, or died; one line, which the run's state has too.
    """
    settings = run.settings()
    _quiet()
    federation = load_federation(settings)
    nodes = len(federation.silos)
    engine = settings.simulation.engine_for(nodes)
    if engine == "ray":
        require_own_engine()
    notes = begin_data(run, federation, changed_data)
    for callback in callbacks:
        callback.record({"kind": "engine", "round": 0, "engine": engine, "silos": nodes})
    stop = threading.Event()
    with _interrupts(stop):
        if engine == "ray":
            return _on_ray(run, settings.simulation, nodes, stop, callbacks, notes)
        from client.app import app as client_app

        grid = TurnGrid(client_app, nodes)
        return run_experiment(
            grid, run, stop=stop, expected_nodes=nodes, callbacks=callbacks, notes=notes
        )


def _on_ray(
    run: RunFolder,
    simulation: SimulationSettings,
    nodes: int,
    stop: threading.Event,
    callbacks: Sequence[Callback],
    notes: Sequence[str],
) -> str:
    """Train on Flower's Ray engine; the status is returned.

    Raises:
        EngineFault: the engine could not start, or died.
    """
    from client.app import app as client_app
    from simulations.ray_engine import EngineFault, run_on_ray

    outcome = {"status": FAILED}
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        outcome["status"] = run_experiment(
            grid, run, stop=stop, expected_nodes=nodes, callbacks=callbacks, notes=notes
        )

    try:
        run_on_ray(server_app, client_app, nodes, backend_config(simulation, nodes), stop)
    except EngineFault as fault:
        run.set_state(status=FAILED, message=str(fault))
        raise
    return outcome["status"]


@contextmanager
def _interrupts(stop: threading.Event) -> Iterator[None]:
    """Have the first Ctrl-C (or SIGTERM) set ``stop``, and the second do what it did before."""
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
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, previous)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
    """Refuse an environment without Ray, or one that sends Ray to a cluster of another program.

    Raises:
        MissingPackage: Ray is not installed.
        ValueError: RAY_ADDRESS names a cluster. Ray itself tries for minutes before it says so.
    """
    require_packages("ray")
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local"):
        raise ValueError(
            "Expected no RAY_ADDRESS in the environment (a simulation starts its own engine), got "
            f"RAY_ADDRESS={address}; unset it, or set it to `local`"
        )


def backend_config(simulation: SimulationSettings, nodes: int) -> Any:
    """Return Flower's configuration of the Ray engine: one CPU slot is one worker process."""
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
