"""``fedllm settings``: print the documented settings of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.output import Overrides


def settings(
    experiment: Annotated[
        Path | None,
        typer.Argument(help="The experiment's TOML file; default: the built-in defaults."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print every setting with its value and meaning."""
    from fedllm.settings.experiment import Settings
    from fedllm.settings.io import load_settings, to_toml

    tree = load_settings(experiment, overrides or []) if experiment else Settings()
    typer.echo(to_toml(tree, documented=True))
