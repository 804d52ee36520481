"""``fedllm deploy node``: run a node on the silo's machine."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.cli.deploy.options import FolderOption, log

if TYPE_CHECKING:
    from server.deployment.node import NodeFile


def node(
    folder: FolderOption = None,
    port: Annotated[
        int | None, typer.Option(help="Loopback port; default: the port in node.toml.")
    ] = None,
) -> None:
    """Run a node (SuperNode) on the silo's machine until interrupted."""
    from client.config import load_silo
    from client.executor.approval import read_approved
    from server.deployment import certificates, processes, programs
    from server.deployment.folder import NODE, DeploymentError, find_folder
    from server.deployment.node import load_node, why_it_ended

    home = find_folder(folder, NODE)
    settings = load_node(home)
    if port is not None:
        settings = settings.model_copy(update={"port": port})
    for name in ("state/flwr", "logs"):
        (home / name).mkdir(parents=True, exist_ok=True)
    processes.claim(home / "state" / "node.pid")
    processes.require_free_port(settings.port, "this node's programs (port in node.toml)")
    own = load_silo(programs.silo_path(home, settings))
    if own.name != settings.name:
        raise DeploymentError(
            f"Expected the name of the node ({settings.name}) as name of its silo in "
            f"{programs.silo_path(home, settings)}, got {own.name}"
        )
    certificates.make_secret(home / "state" / "superexec.secret")
    started = programs.node_programs(home, settings)
    supervisor = processes.Supervisor(started, log, why_it_ended)
    processes.stop_on_signals(supervisor.stop)
    _wait_for_server(home, settings, supervisor.stop)
    if not supervisor.stop.is_set():
        log(f"node {settings.name} connects to {settings.server}; logs: {home / 'logs'}")
        if not read_approved(own.approved):
            log(f"no app is approved in {own.approved}, so none runs: fedllm deploy approve")
        supervisor.run()
    log("stopped")


def _wait_for_server(home: Path, settings: NodeFile, stop: threading.Event) -> None:
    """Wait for the server to listen; raise errors that waiting cannot fix."""
    from server.deployment.node import Unreachable, check_server

    said = ""
    while not stop.is_set():
        try:
            check_server(home, settings)
            return
        except Unreachable as error:
            if str(error) != said:
                said = str(error)
                log(f"{error}; waiting for it")
            stop.wait(5)
