"""The Flower ServerApp: settings from the run's configuration, then :func:`server.run.run_experiment`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid

from fedllm.budget.evaluation_choice import decide_evaluation
from fedllm.data.silos import load_federation
from fedllm.report.extract.keys import KeyProblem, load_node_key
from fedllm.run.folder import RunFolder
from fedllm.run.lock import sole_use
from fedllm.settings.experiment import Settings
from fedllm.settings.io import SettingsError, from_json, load_settings
from server.deployment.folder import Folder
from server.extracts import Extracts
from server.monitoring import LogProgress
from server.nodes.simulated import require_a_node_for_each_silo
from server.run import FAILED, run_experiment

app = ServerApp()
log = logging.getLogger("fedllm")
HANDOVER = 120.0
"""Seconds to wait for the folder of a run that was just stopped: its server app learns of it by its next heartbeat."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run configuration names (``flwr run .``, ``fedllm deploy submit``).

    Keys: ``settings`` (resolved settings as JSON) or ``experiment`` (a TOML file inside the app, or an
    absolute path); ``overrides`` (``"section.key=value; ..."``); ``run-folder`` (an existing run is gone
    on with; a relative one is below the working directory); ``silos`` (names to wait for, separated by
    commas; empty takes those that are there, in Flower's simulation one for each silo).

    Raises:
        RunStopped: Flower's simulation has not one node for each silo; nothing was written or asked.
        RuntimeError: the run failed; Flower then shows it as failed.
        RunFolderError: another process works in its folder still, :data:`HANDOVER` seconds later.
    """
    _log_to_stdout()
    config = context.run_config
    given = str(config.get("run-folder", ""))
    folder = Path(given).absolute() if given else None
    begun = RunFolder.open(folder) if folder and (folder / "state.json").exists() else None
    settings = settings_of(config) if begun is None else begun.settings()
    expected = None
    if isinstance(grid, InMemoryGrid):  # Flower's simulation: the nodes have no names
        settings = decide_evaluation(settings)
        expected = len(load_federation(settings).silos)
        require_a_node_for_each_silo(grid, expected)
    run = begun or RunFolder.create(settings, folder)
    log.info("run folder: %s", run.path)
    names = [name.strip() for name in str(config.get("silos", "")).split(",")]
    with sole_use(run.path, HANDOVER):
        status = run_experiment(
            grid,
            run,
            expected_nodes=expected,
            expected_silos=[name for name in names if name],
            callbacks=[LogProgress()],
            extracts=extracts_of(run, Path.cwd()),
        )
    if status == FAILED:
        raise RuntimeError(str(run.state()["message"]))


def extracts_of(run: RunFolder, folder: Path) -> Extracts | None:
    """Return the extracts of the silos' ledgers, by the node keys that are registered in the deployment's folder.

    Returns:
        None where ``folder`` is none of a deployment: then the report has no account of the silos' own ledgers.
    """
    place = Folder(folder)
    if not place.deployment.is_file():
        return None
    keys = {}
    for name in place.load().nodes:
        try:
            keys[name] = load_node_key(place.public_key(name))
        except KeyProblem as error:
            log.warning("the silo %s cannot vouch for its ledger: %s", name, error)
    return Extracts(run, keys, place.extracts)


def _log_to_stdout() -> None:
    """Log to stdout, which Flower keeps as the run's log."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def settings_of(config: object) -> Settings:
    """Return the settings that a Flower run configuration names.

    Raises:
        SettingsError: neither ``settings`` nor ``experiment``, or what they hold is not valid.
    """
    values = dict(config)  # type: ignore[call-overload]
    if values.get("settings"):
        return from_json(str(values["settings"]))
    name = str(values.get("experiment", ""))
    if not name:
        raise SettingsError("Expected experiment=PATH in the run configuration, got none")
    path = Path(name)
    if not path.is_absolute():
        path = Path(__file__).resolve().parent.parent / name
    overrides = [part.strip() for part in str(values.get("overrides", "")).split(";")]
    return load_settings(path, [part for part in overrides if part])
