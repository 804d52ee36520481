"""``fedllm run``: simulate an experiment on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.output import AsJson, Overrides


def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment's TOML file.")],
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option("--run", help="Folder of the run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate an experiment on this machine; prints a table and the path of the report."""
    from fedllm.run.folder import RunFolder
    from fedllm.settings.io import load_settings
    from simulations.cli.training import train
    from simulations.runner import prepare

    settings = load_settings(experiment, overrides or [])
    prepare(settings)
    train(RunFolder.create(settings, folder), as_json)
