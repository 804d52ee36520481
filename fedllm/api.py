"""The public functions of fedllm: what its commands do, as functions. ``import fedllm`` names them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fedllm.run.folder import RunFolder
    from fedllm.settings.experiment import Settings
    from privacy.calibration import Calibration

_INSTALL = {
    "simulations": "fedllm",
    "flwr": "'flwr[simulation]'",
    "ray": "'flwr[simulation]'",
}


class MissingPackage(ValueError):
    """A package that a simulation needs is not installed."""


class Watcher(Protocol):
    """Receives each record of a run, a mapping with ``kind`` and ``round``; all values are released or public."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Take one record."""

    def close(self) -> None:
        """End the display when the run has ended."""


Watch = Callable[["RunFolder"], Sequence[Watcher]]
"""Gets the run's folder once it is there; returns what receives the run's records."""


def plan(experiment: Settings | str | Path) -> dict[str, Any]:
    """Calibrate each silo's noise before any training; the model is not loaded.

    Args:
        experiment: settings, or an experiment's TOML file.

    Returns:
        ``silos``: by name ``noise_multiplier``, ``epsilon``, ``delta``, ``steps``, ...; and ``warnings``.

    Raises:
        ValueError: the data cannot be read, or the settings do not fit the silos.
        MissingPackage: Flower is not installed.

    Example:
        >>> planned = fedllm.plan("simulations/experiments/tweets.toml")
        >>> planned["silos"]["united"]["noise_multiplier"]
    """
    planning = _simulations("plans.experiment", "flwr")
    planned: dict[str, Any] = planning.plan_experiment(_settings(experiment))
    return planned


def calibrate(
    *,
    epsilon: float,
    delta: float | None = None,
    sampling_rate: float | None = None,
    steps: int | None = None,
    noise_multiplier: float | None = None,
    relation: str = "zero-out",
    accountant: str = "pld",
    copies: int = 1,
) -> Calibration:
    """Find the one parameter of DP-SGD that is not given, so that training costs at most epsilon.

    Args:
        epsilon: the target.
        delta, sampling_rate, steps, noise_multiplier: all but one.
        relation: ``zero-out``, ``add-or-remove-one`` or ``replace-one``.
        accountant: ``pld`` or ``rdp``.
        copies: how often a record is in the data.

    Raises:
        ValueError: more or less than one is left out, a value is out of range, or the target cannot be met.

    Example:
        >>> found = fedllm.calibrate(epsilon=3, delta=1e-5, sampling_rate=0.01, steps=1000)
        >>> found.noise_multiplier, found.epsilon
    """
    from privacy import calibration
    from privacy.guarantee import Relation

    solvers: dict[str, Callable[..., Calibration]] = {
        "delta": calibration.calibrate_delta,
        "sampling_rate": calibration.calibrate_sampling_rate,
        "steps": calibration.calibrate_steps,
        "noise_multiplier": calibration.calibrate_noise_multiplier,
    }
    values = {
        "delta": delta,
        "sampling_rate": sampling_rate,
        "steps": steps,
        "noise_multiplier": noise_multiplier,
    }
    given = {name: value for name, value in values.items() if value is not None}
    unknown = [name for name in solvers if name not in given]
    if len(unknown) != 1:
        raise ValueError(
            f"Expected all but one of {', '.join(solvers)}, got {', '.join(given) or 'none'}"
        )
    return solvers[unknown[0]](
        epsilon=epsilon, relation=Relation(relation), accountant=accountant, copies=copies, **given
    )


def run(
    experiment: Settings | str | Path,
    folder: str | Path | None = None,
    *,
    watch: Watch | None = None,
) -> RunFolder:
    """Simulate an experiment on this machine, to its end or until Ctrl-C.

    Args:
        experiment: settings, or an experiment's TOML file.
        folder: the run's folder; by default a new one below ``output.folder``.
        watch: gets the new folder; what it returns receives each record of the run.

    Returns:
        The run's folder; ``state()["status"]`` is ``finished``, ``stopped`` (budget spent), ``interrupted`` or
        ``failed``.

    Raises:
        ValueError: settings, data or model are not usable, or the folder is not empty.
        MissingPackage: Flower or Ray is not installed.

    Example:
        >>> settings = fedllm.load_settings("simulations/experiments/tweets.toml", ["server.rounds=2"])
        >>> run = fedllm.run(settings, "runs/first")
        >>> run.state()["status"]
        'finished'
    """
    from fedllm.run.folder import RunFolder
    from fedllm.run.lock import sole_use

    runner = _simulations("runner", "flwr")
    settings = _settings(experiment)
    settings = runner.prepare(settings)
    made = RunFolder.create(settings, folder)
    with sole_use(made.path):
        runner.simulate(made, [] if watch is None else watch(made))
    return made


def resume(
    path: RunFolder | str | Path, *, watch: Watch | None = None, changed_data: bool = False
) -> RunFolder:
    """Resume an interrupted run; the result equals that of an uninterrupted run.

    Args:
        path: the run's folder.
        watch: as in :func:`run`.
        changed_data: whether to go on with other data than the run was begun with, which the report then says.

    Raises:
        RunFolderError: it is no run's folder, the run is finished, another process works on it, its report is
            signed, its data have changed, or an earlier version's mechanism is gone.
        MissingPackage: Flower or Ray is not installed.

    Example:
        >>> run = fedllm.resume("runs/first")
    """
    from fedllm.run.folder import RunFolder, RunFolderError
    from fedllm.run.lock import sole_use
    from fedllm.run.signed_report import MOVE, require_unsigned

    folder = path if isinstance(path, RunFolder) else RunFolder.open(path)
    folder.require_current()
    with sole_use(folder.path):
        if folder.state()["status"] == "finished":
            raise RunFolderError(
                f"Expected an unfinished run, {folder.path if path is folder else path} is finished"
            )
        require_unsigned(folder.path, MOVE)
        runner = _simulations("runner", "flwr")
        watchers = [] if watch is None else watch(folder)
        runner.simulate(folder, watchers, changed_data=changed_data)
    return folder


def report(path: RunFolder | str | Path, to: str | Path | None = None) -> dict[str, Any]:
    """Make ``report.html`` and ``report.json`` again from the ledger and the metrics.

    Args:
        path: the run's folder, however damaged.
        to: the folder to write into; by default the run's.

    Returns:
        What ``report.json`` holds: ``headline`` (the guarantee), ``silos``, ``problems``, ...

    Raises:
        RunFolderError: it is no run's folder, its report is signed (which is never overwritten), or the folder cannot
            be written to.

    Example:
        >>> fedllm.report("runs/first")["headline"]
    """
    from fedllm.report import write_report

    page = write_report(path, to)
    content: dict[str, Any] = json.loads(page.with_name("report.json").read_text(encoding="utf-8"))
    return content


def predict(path: RunFolder | str | Path, texts: Sequence[str | Mapping[str, Any]]) -> list[Any]:
    """Use a trained model on texts.

    Args:
        path: a run's folder, or an exported adapter.
        texts: texts, or mappings with the columns of ``task.text``.

    Returns:
        In order, by the task: ``{"label": ..., "probabilities": {...}}`` of each text, the text that the model writes, or
        what :meth:`fedllm.adapter.predict.Predictor.predict` lists.

    Raises:
        PredictError: there is no model, or a text lacks a column.

    Example:
        >>> fedllm.predict("runs/first", ["thank you for finding my bag!"])[0]["label"]
        'positive'
    """
    from fedllm.adapter.predict import Predictor

    return Predictor(path).predict(texts)


def _settings(experiment: Settings | str | Path) -> Settings:
    from fedllm.settings.experiment import Settings
    from fedllm.settings.io import load_settings

    return experiment if isinstance(experiment, Settings) else load_settings(experiment)


def _simulations(module: str, *needed: str) -> ModuleType:
    """Import a module of ``simulations``, which builds on this package and is therefore imported when it is used."""
    require_packages("simulations", *needed)
    return import_module(f"simulations.{module}")


def require_packages(*names: str) -> None:
    """Refuse to simulate without these packages.

    Raises:
        MissingPackage: one is not installed.
    """
    for package in names:
        try:
            found = find_spec(package) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise MissingPackage(
                f"Expected the package {package} to simulate an experiment, got none installed: "
                f"pip install {_INSTALL[package]}"
            )
