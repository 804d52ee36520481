"""``fedllm run``: simulate an experiment on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.output import AsJson, Overrides


def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment's TOML file.")],
    overrides: Overrides = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--run", help="Run folder to create; default: a new folder below output.folder."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate an experiment on this machine; print a table and the path of the report."""
    import fedllm
    from simulations.cli.training import finish, view

    settings = fedllm.load_settings(experiment, overrides or [])
    finish(fedllm.run(settings, folder, watch=view(as_json)), as_json)
