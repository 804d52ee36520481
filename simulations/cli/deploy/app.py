"""``fedllm deploy app``: the code that runs ship, and its SHA-256."""

from __future__ import annotations

from typing import Annotated

import typer

from simulations.cli.deploy.options import FolderOption


def app(
    folder: FolderOption = None,
    update: Annotated[
        bool, typer.Option("--update", help="Make it anew of what is installed here.")
    ] = False,
) -> None:
    """Print the SHA-256 of the app that runs ship, by which nodes approve it."""
    from server.deployment import setup
    from server.deployment.app_bundle import bundle, bundle_hash, make_app
    from server.deployment.folder import Folder, find_folder

    home = Folder(find_folder(folder))
    if update:
        home.load()
        make_app(home.app)
        if home.operator.is_dir():
            setup.copy_app(home)
    typer.echo(bundle_hash(bundle(home.app)))
