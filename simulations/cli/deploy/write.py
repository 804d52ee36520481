"""``fedllm deploy write``: rewrite the files generated from deployment.toml."""

from __future__ import annotations

import typer

from simulations.cli.deploy.options import FolderOption


def write(folder: FolderOption = None) -> None:
    """Rewrite nginx.conf and the unit files after a change of deployment.toml."""
    from server.deployment import setup
    from server.deployment.folder import Folder, find_folder

    home = Folder(find_folder(folder))
    setup.write_files(home, home.load())
    typer.echo(f"{home.proxy}\n{home.units}")
