"""``fedllm deploy stop``: stop a run."""

from __future__ import annotations

import typer

from simulations.cli.deploy.operator.options import RunName
from simulations.cli.deploy.options import FolderOption


def stop(run: RunName, folder: FolderOption = None) -> None:
    """Stop a run; `resume` continues after its last finished round."""
    from server.deployment import control
    from server.deployment.folder import DeploymentError
    from simulations.cli.deploy.operator.shared import find_run, home_folder, name_of

    with control.connect(home_folder(folder)) as link:
        chosen = find_run(link, run)
        if chosen.over:
            raise DeploymentError(
                f"Expected a run in progress, {name_of(chosen)} is {chosen.status}"
            )
        link.stop(chosen.run_id)
        typer.echo(f"{name_of(chosen)} is stopped")
