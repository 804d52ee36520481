"""The Flower ServerApp: settings from the run's configuration, then :func:`server.run.run_experiment`."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedllm.run_folder import RunFolder
from fedllm.settings import Settings
from fedllm.settings_io import SettingsError, load_settings
from server.callbacks import LogWarnings
from server.run import FAILED, run_experiment

app = ServerApp()
log = logging.getLogger("fedllm")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run configuration names (``flwr run .``).

    Keys: ``experiment`` (a TOML file inside the app, or an absolute path), ``overrides``
    (``"section.key=value; ..."``), ``run-folder`` (absolute; an existing run is resumed).

    Raises:
        RuntimeError: the run failed; Flower then shows it as failed.
    """
    config = context.run_config
    folder = str(config.get("run-folder", ""))
    if folder and (Path(folder) / "state.json").exists():
        run = RunFolder.open(folder)
    else:
        run = RunFolder.create(settings_of(config), Path(folder) if folder else None)
    log.info("run folder: %s", run.path)
    status = run_experiment(grid, run, callbacks=[LogWarnings()])
    if status == FAILED:
        raise RuntimeError(str(run.state()["message"]))


def settings_of(config: object) -> Settings:
    """Settings that a Flower run configuration names.

    Raises:
        SettingsError: no ``experiment``, or what it names is not valid.
    """
    values = dict(config)  # type: ignore[call-overload]
    name = str(values.get("experiment", ""))
    if not name:
        raise SettingsError("Expected experiment=PATH in the run configuration, got none")
    path = Path(name)
    if not path.is_absolute():
        path = Path(__file__).resolve().parent.parent / name
    overrides = [part.strip() for part in str(values.get("overrides", "")).split(";")]
    return load_settings(path, [part for part in overrides if part])
