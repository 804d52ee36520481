"""Options that the commands of ``fedllm deploy`` share, and how they log and write a silo's file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.deployment.folder import Deployment, Folder

FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder", "-C", help="The deployment's folder; else $FEDLLM_DEPLOYMENT, else here."
    ),
]
NodeName = Annotated[str, typer.Argument(metavar="NAME", help="The node's name.")]


def log(line: str) -> None:
    """Print a line with the time on stderr."""
    typer.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", err=True)


def write_silo(home: Folder, name: str) -> None:
    """Write the template of a silo's own file; its people fill it in on their machine."""
    from client.config import template
    from fedllm.files.durable import write_text

    write_text(home.node(name) / "silo.toml", template(name))


def register_now(home: Folder, deployment: Deployment) -> None:
    """Register the deployment's nodes with the SuperLink if it is running here."""
    from server.deployment import control, setup

    try:
        with control.connect(home.path) as link:
            for change in link.agree(setup.node_keys(home, deployment)):
                typer.echo(change)
    except control.ServerAway:
        typer.echo("the SuperLink is not running here; it is told at its next start")
