"""``fedllm deploy``: a federation on real machines, from its folder to its runs.

Here are the commands that make a deployment and keep its programs running; those about runs are in
:mod:`simulations.cli.deploy_runs`.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from client.config import load_silo, template
from client.executor.approval import read_approved
from fedllm.files.durable import write_text
from server.deployment import certificates, control, node, processes, programs, setup
from server.deployment.app_bundle import bundle, bundle_hash, make_app
from server.deployment.folder import (
    ENVIRONMENT,
    NODE,
    Deployment,
    DeploymentError,
    Folder,
    Machines,
    Ports,
    find_folder,
)
from simulations.cli import deploy_runs as cli_deploy_runs
from simulations.cli import node as cli_deploy_node
from simulations.output import OneLineErrors, OneLineGroup

app = typer.Typer(
    name="deploy",
    help="Run federations on real machines: server, nodes, certificates, runs.",
    no_args_is_help=True,
    cls=OneLineGroup,
    suggest_commands=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder", "-C", help=f"The deployment's folder; else ${ENVIRONMENT}, else here."
    ),
]
NodeName = Annotated[str, typer.Argument(metavar="NAME", help="The node's name.")]


def register(parent: typer.Typer) -> None:
    """Add ``deploy`` to the command line."""
    cli_deploy_runs.register(app)
    cli_deploy_node.add(app)
    parent.add_typer(app)


@app.command(cls=OneLineErrors)
def init(
    folder: Annotated[Path, typer.Argument(help="New folder, on the server's machine.")],
    server: Annotated[
        list[str],
        typer.Option(
            "--server", help="Name or address by which nodes reach the server. May be repeated."
        ),
    ],
    nodes: Annotated[
        list[str] | None, typer.Option("--node", help="Name of a node. May be repeated.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the federation.")] = "fedllm",
    port: Annotated[int, typer.Option(help="Public port for nodes.")] = 8443,
    superlink_port: Annotated[int, typer.Option(help="Loopback port of the SuperLink.")] = 8000,
    operator_port: Annotated[
        int, typer.Option(help="Public port for the operator's certificate; 0: none.")
    ] = 0,
    programs_folder: Annotated[
        str, typer.Option("--programs", help="Unit files: folder with fedllm's programs.")
    ] = "/opt/fedllm/bin",
    target: Annotated[
        str, typer.Option(help="Unit files: where a machine's part of the deployment lies.")
    ] = "/srv/fedllm",
    user: Annotated[str, typer.Option(help="Unit files: who runs the services.")] = "fedllm",
) -> None:
    """Make a deployment: certificates, a key for each node, the app, unit files."""
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
        _write_silo(home, added)
        typer.echo(f"for the machine of {added}: {home.node(added)}")
    if deployment.ports.operator:
        typer.echo(f"for the operator's machine: {home.operator}")
    typer.echo(f"next: fedllm deploy server --folder {home.path}")


@app.command(cls=OneLineErrors)
def server(folder: FolderOption = None) -> None:
    """Run the server's programs (SuperLink, SuperExec, nginx) until interrupted."""
    home = Folder(find_folder(folder))
    deployment = home.load()
    certificates_say = certificates.check(
        home.ca, home.server_certificate, (*deployment.hosts, *certificates.LOOPBACK)
    )
    for warning in certificates_say:
        _say(f"warning: {warning}")
    keys = setup.node_keys(home, deployment)
    _prepare(home)
    processes.claim(home.state / "server.pid")
    processes.require_free_port(deployment.ports.superlink, "the SuperLink (ports.superlink)")
    processes.require_free_port(deployment.ports.nodes, "nodes (ports.nodes)", host="0.0.0.0")
    if deployment.ports.operator:
        processes.require_free_port(
            deployment.ports.operator, "the operator (ports.operator)", host="0.0.0.0"
        )
    supervisor = processes.Supervisor(programs.server_programs(home, deployment), _say)
    processes.stop_on_signals(supervisor.stop)

    def ready() -> None:
        try:
            with control.connect(home.path) as link:
                control.wait_until_up(link, 120, supervisor.stop.is_set)
                for change in link.agree(keys):
                    _say(change)
        except DeploymentError as error:
            if not supervisor.stop.is_set():
                _say(f"{error} Logs: {home.logs}")
            return
        _say(f"ready: nodes connect to {deployment.address}; logs: {home.logs}")

    _say(f"starting the server of {deployment.name}")
    supervisor.run(ready)
    _say("stopped")


@app.command("node", cls=OneLineErrors)
def run_node(
    folder: FolderOption = None,
    port: Annotated[
        int | None, typer.Option(help="Another loopback port than node.toml's.")
    ] = None,
) -> None:
    """Run a node (SuperNode) until interrupted, on the silo's machine."""
    home = find_folder(folder, NODE)
    settings = node.load_node(home)
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
    supervisor = processes.Supervisor(started, _say, node.why_it_ended)
    processes.stop_on_signals(supervisor.stop)
    _wait_for_server(home, settings, supervisor.stop)
    if not supervisor.stop.is_set():
        _say(f"node {settings.name} connects to {settings.server}; logs: {home / 'logs'}")
        if not read_approved(own.approved):
            _say(f"no app is approved in {own.approved}, so none runs: fedllm deploy approve")
        supervisor.run()
    _say("stopped")


def _write_silo(home: Folder, name: str) -> None:
    """A silo config to begin with; its people fill it in on their machine."""
    write_text(home.node(name) / "silo.toml", template(name))


def _wait_for_server(home: Path, settings: node.NodeFile, stop: threading.Event) -> None:
    """Wait for the server to listen; what waiting does not mend raises."""
    said = ""
    while not stop.is_set():
        try:
            node.check_server(home, settings)
            return
        except node.Unreachable as error:
            if str(error) != said:
                said = str(error)
                _say(f"{error}; waiting for it")
            stop.wait(5)


@app.command(cls=OneLineErrors)
def add_node(
    name: NodeName,
    folder: FolderOption = None,
    public_key: Annotated[
        Path | None,
        typer.Option(help="Key made on the node (ssh-keygen -t ecdsa -b 384); else one is made."),
    ] = None,
) -> None:
    """Add a node, or give one a new key (its old one is refused from then on)."""
    home = Folder(find_folder(folder))
    deployment = setup.add_node(home, home.load(), name, public_key)
    _write_silo(home, name)
    typer.echo(f"for the machine of {name}: {home.node(name)}")
    _register_now(home, deployment)


@app.command(cls=OneLineErrors)
def remove_node(name: NodeName, folder: FolderOption = None) -> None:
    """Take a node out; the server refuses its key from then on."""
    home = Folder(find_folder(folder))
    _register_now(home, setup.remove_node(home, home.load(), name))


@app.command("register", cls=OneLineErrors)
def register_nodes(
    folder: FolderOption = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the SuperLink.")] = 60,
) -> None:
    """Tell a running SuperLink which nodes there are (`deploy server` does so itself)."""
    home = Folder(find_folder(folder))
    keys = setup.node_keys(home, home.load())
    with control.connect(home.path) as link:
        control.wait_until_up(link, wait, lambda: False)
        for change in link.agree(keys) or ["nothing to change"]:
            typer.echo(change)


@app.command(cls=OneLineErrors)
def renew(
    what: Annotated[str, typer.Argument(help="`server` or `operator`.")],
    folder: FolderOption = None,
    days: Annotated[float, typer.Option(help="Days that it is valid.")] = 365,
) -> None:
    """Make a new key and certificate for the server or the operator."""
    if what not in ("server", "operator"):
        raise DeploymentError(f"Expected server or operator, got {what}")
    home = Folder(find_folder(folder))
    deployment = home.load()
    if what == "server":
        setup.renew_server(home, deployment, days)
        typer.echo(f"{home.server_certificate}: restart the server to use it")
    else:
        setup.renew_operator(home, deployment, days)
        setup.write_files(home, deployment)
        typer.echo(f"for the operator's machine: {home.operator}")
        typer.echo("restart the server to refuse the old one")


@app.command(cls=OneLineErrors)
def write(folder: FolderOption = None) -> None:
    """Write nginx.conf and the unit files anew, after a change of deployment.toml."""
    home = Folder(find_folder(folder))
    setup.write_files(home, home.load())
    typer.echo(f"{home.proxy}\n{home.units}")


@app.command("app", cls=OneLineErrors)
def app_code(
    folder: FolderOption = None,
    update: Annotated[
        bool, typer.Option("--update", help="Make it anew of what is installed here.")
    ] = False,
) -> None:
    """Print the SHA-256 of the app that runs ship, by which nodes approve it."""
    home = Folder(find_folder(folder))
    if update:
        home.load()
        make_app(home.app)
        if home.operator.is_dir():
            setup.copy_app(home)
    typer.echo(bundle_hash(bundle(home.app)))


def _register_now(home: Folder, deployment: Deployment) -> None:
    try:
        with control.connect(home.path) as link:
            for change in link.agree(setup.node_keys(home, deployment)):
                typer.echo(change)
    except control.ServerAway:
        typer.echo("the SuperLink is not running here; it is told at its next start")


def _prepare(home: Folder) -> None:
    for path in (home.state / "flwr", home.logs, home.runs):
        path.mkdir(parents=True, exist_ok=True)


def _say(line: str) -> None:
    typer.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", err=True)
