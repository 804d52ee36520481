"""Shared options of ``fedllm deploy``, logging, and the template of a silo config."""

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
        "--folder",
        "-C",
        help="Deployment folder; default: $FEDLLM_DEPLOYMENT, or the current folder.",
    ),
]
NodeName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the node.")]


def log(line: str) -> None:
    """Print a line with a timestamp on stderr."""
    typer.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", err=True)


def write_silo(home: Folder, name: str) -> None:
    """Write the template of a silo config; the silo completes it on its machine."""
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
        typer.echo("the SuperLink is not running here; nodes are registered at its next start")
