"""``fedllm deploy init``: create a deployment folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.deploy.options import write_silo


def init(
    folder: Annotated[Path, typer.Argument(help="New folder on the server's machine.")],
    server: Annotated[
        list[str],
        typer.Option(
            "--server",
            help="Host name or address at which nodes reach the server. May be repeated.",
        ),
    ],
    nodes: Annotated[
        list[str] | None, typer.Option("--node", help="Name of a node. May be repeated.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the federation.")] = "fedllm",
    port: Annotated[int, typer.Option(help="Public port for nodes.")] = 8443,
    superlink_port: Annotated[int, typer.Option(help="Loopback port of the SuperLink.")] = 8000,
    operator_port: Annotated[
        int,
        typer.Option(help="Public port for the operator (client certificate required); 0: none."),
    ] = 0,
    programs_folder: Annotated[
        str, typer.Option("--programs", help="Unit files: folder of fedllm's programs.")
    ] = "/opt/fedllm/bin",
    target: Annotated[
        str, typer.Option(help="Unit files: path of the deployment's files on each machine.")
    ] = "/srv/fedllm",
    user: Annotated[str, typer.Option(help="Unit files: user that runs the services.")] = "fedllm",
) -> None:
    """Create a deployment: certificates, a key per node, the app, unit files."""
    from server.deployment import setup
    from server.deployment.folder import Deployment, Folder, Machines, Ports

    deployment = Deployment(
        name=name,
        hosts=tuple(server),
        nodes=tuple(nodes or ()),
        ports=Ports(nodes=port, superlink=superlink_port, operator=operator_port),
        machines=Machines(programs=programs_folder, folder=target, user=user),
    )
    home = Folder(folder.expanduser().absolute())
    digest = setup.create(home, deployment)
    typer.echo(f"made {home.path}")
    typer.echo(f"the app that nodes approve: {digest}")
    for added in deployment.nodes:
        write_silo(home, added)
        typer.echo(f"for the machine of {added}: {home.node(added)}")
    if deployment.ports.operator:
        typer.echo(f"for the operator's machine: {home.operator}")
    typer.echo(f"next: fedllm deploy server --folder {home.path}")
