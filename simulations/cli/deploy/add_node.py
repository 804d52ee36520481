"""``fedllm deploy add-node``: add a node, or replace its key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.deploy.options import FolderOption, NodeName, register_now, write_silo


def add_node(
    name: NodeName,
    folder: FolderOption = None,
    public_key: Annotated[
        Path | None,
        typer.Option(
            help="Public key generated on the node (ssh-keygen -t ecdsa -b 384); default: generate a "
            "key pair here."
        ),
    ] = None,
) -> None:
    """Add a node, or replace a node's key (the old key is then refused)."""
    from server.deployment import setup
    from server.deployment.folder import Folder, find_folder

    home = Folder(find_folder(folder))
    deployment = setup.add_node(home, home.load(), name, public_key)
    write_silo(home, name)
    typer.echo(f"for the machine of {name}: {home.node(name)}")
    register_now(home, deployment)
