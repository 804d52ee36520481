"""``fedllm deploy server``: run the server's programs."""

from __future__ import annotations

from simulations.cli.deploy.options import FolderOption, log


def server(folder: FolderOption = None) -> None:
    """Run the server's programs (SuperLink, SuperExec, nginx) until interrupted."""
    from server.deployment import certificates, control, processes, programs, setup
    from server.deployment.folder import DeploymentError, Folder, find_folder

    home = Folder(find_folder(folder))
    deployment = home.load()
    certificates_say = certificates.check(
        home.ca, home.server_certificate, (*deployment.hosts, *certificates.LOOPBACK)
    )
    for warning in certificates_say:
        log(f"warning: {warning}")
    keys = setup.node_keys(home, deployment)
    for path in (home.state / "flwr", home.logs, home.runs):
        path.mkdir(parents=True, exist_ok=True)
    processes.claim(home.state / "server.pid")
    processes.require_free_port(deployment.ports.superlink, "the SuperLink (ports.superlink)")
    processes.require_free_port(deployment.ports.nodes, "nodes (ports.nodes)", host="0.0.0.0")
    if deployment.ports.operator:
        processes.require_free_port(
            deployment.ports.operator, "the operator (ports.operator)", host="0.0.0.0"
        )
    supervisor = processes.Supervisor(programs.server_programs(home, deployment), log)
    processes.stop_on_signals(supervisor.stop)

    def ready() -> None:
        try:
            with control.connect(home.path) as link:
                control.wait_until_up(link, 120, supervisor.stop.is_set)
                for change in link.agree(keys):
                    log(change)
        except DeploymentError as error:
            if not supervisor.stop.is_set():
                log(f"{error} Logs: {home.logs}")
            return
        log(f"ready: nodes connect to {deployment.address}; logs: {home.logs}")

    log(f"starting the server of {deployment.name}")
    supervisor.run(ready)
    log("stopped")
