"""``fedllm deploy app``: print the SHA-256 of the code that runs ship."""

from __future__ import annotations

from typing import Annotated

import typer

from simulations.cli.deploy.options import FolderOption


def app(
    folder: FolderOption = None,
    update: Annotated[
        bool, typer.Option("--update", help="Rebuild the app from the installed code first.")
    ] = False,
) -> None:
    """Print the SHA-256 of the app that runs ship; nodes approve the app by this hash."""
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
