"""``fedllm deploy register``: register the nodes with a running SuperLink."""

from __future__ import annotations

from typing import Annotated

import typer

from simulations.cli.deploy.options import FolderOption


def register(
    folder: FolderOption = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the SuperLink.")] = 60,
) -> None:
    """Register the nodes with a running SuperLink (`deploy server` does this at start)."""
    from server.deployment import control, setup
    from server.deployment.folder import Folder, find_folder

    home = Folder(find_folder(folder))
    keys = setup.node_keys(home, home.load())
    with control.connect(home.path) as link:
        control.wait_until_up(link, wait, lambda: False)
        for change in link.agree(keys) or ["nothing to change"]:
            typer.echo(change)
