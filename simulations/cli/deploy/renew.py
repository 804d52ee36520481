"""``fedllm deploy renew``: renew a certificate."""

from __future__ import annotations

from typing import Annotated

import typer

from simulations.cli.deploy.options import FolderOption


def renew(
    what: Annotated[str, typer.Argument(help="Certificate to renew: `server` or `operator`.")],
    folder: FolderOption = None,
    days: Annotated[float, typer.Option(help="Validity in days.")] = 365,
) -> None:
    """Renew the key and certificate of the server or the operator."""
    from server.deployment import setup
    from server.deployment.folder import DeploymentError, Folder, find_folder

    if what not in ("server", "operator"):
        raise DeploymentError(f"Expected server or operator, got {what}")
    home = Folder(find_folder(folder))
    deployment = home.load()
    if what == "server":
        setup.renew_server(home, deployment, days)
        typer.echo(f"{home.server_certificate}: restart the server to use it")
    else:
        setup.renew_operator(home, deployment, days)
        setup.write_files(home, deployment)
        typer.echo(f"for the operator's machine: {home.operator}")
        typer.echo("restart the server to refuse the old one")
