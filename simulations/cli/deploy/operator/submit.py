"""``fedllm deploy submit``: start an experiment on the nodes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.deploy.operator.options import Detach
from simulations.cli.deploy.options import FolderOption
from simulations.output import Overrides


def submit(
    experiment: Annotated[Path, typer.Argument(help="The experiment's TOML file.")],
    overrides: Overrides = None,
    folder: FolderOption = None,
    silos: Annotated[
        str, typer.Option(help="Comma-separated silos to wait for; default: all nodes.")
    ] = "",
    detach: Detach = False,
) -> None:
    """Start an experiment on the nodes and follow its log; exit 1 if the run fails."""
    from fedllm.settings.io import load_settings, to_json
    from server.deployment import control
    from server.deployment.app_bundle import bundle
    from server.deployment.folder import DeploymentError
    from simulations.cli.deploy.operator.shared import home_folder, split_names, start

    settings = load_settings(experiment, overrides or [])
    home = home_folder(folder)
    code = bundle(home / "app")
    with control.connect(home) as link:
        known = [node.name for node in link.nodes()]
        expected = split_names(silos) or known
        if not expected:
            raise DeploymentError("Expected a node, none is registered: `fedllm deploy add-node`")
        if unknown := [name for name in expected if name not in known]:
            raise DeploymentError(
                f"Expected --silos to name nodes ({', '.join(known)}), got {', '.join(unknown)}"
            )
        stem = f"{settings.name}-{datetime.now():%Y%m%d-%H%M%S}"
        config = {
            "settings": to_json(settings),
            "run-folder": f"runs/{stem}",
            "silos": ",".join(expected),
        }
        start(link, home, code, config, detach)
