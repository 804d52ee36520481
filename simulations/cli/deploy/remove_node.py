"""``fedllm deploy remove-node``: remove a node."""

from __future__ import annotations

from simulations.cli.deploy.options import FolderOption, NodeName, register_now


def remove_node(name: NodeName, folder: FolderOption = None) -> None:
    """Remove a node; the server then refuses its key."""
    from server.deployment import setup
    from server.deployment.folder import Folder, find_folder

    home = Folder(find_folder(folder))
    register_now(home, setup.remove_node(home, home.load(), name))
