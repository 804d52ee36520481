"""``fedllm deploy``: a federation on real machines, from its folder to its runs.

Commands that make a deployment and keep its programs running are here, the operator's commands for runs in ``operator``, those of a
silo on its own machine in ``silo``.
"""

from __future__ import annotations

from simulations.cli.lazy import Table, lazy_group

COMMANDS: Table = {
    "init": (
        "simulations.cli.deploy.init:init",
        "Make a deployment: certificates, a key for each node, the app, unit files.",
    ),
    "server": (
        "simulations.cli.deploy.server:server",
        "Run the server's programs (SuperLink, SuperExec, nginx) until interrupted.",
    ),
    "node": (
        "simulations.cli.deploy.node:node",
        "Run a node (SuperNode) until interrupted, on the silo's machine.",
    ),
    "add-node": (
        "simulations.cli.deploy.add_node:add_node",
        "Add a node, or give one a new key (its old one is refused from then on).",
    ),
    "remove-node": (
        "simulations.cli.deploy.remove_node:remove_node",
        "Take a node out; the server refuses its key from then on.",
    ),
    "register": (
        "simulations.cli.deploy.register:register",
        "Tell a running SuperLink which nodes there are (`deploy server` does so itself).",
    ),
    "renew": (
        "simulations.cli.deploy.renew:renew",
        "Make a new key and certificate for the server or the operator.",
    ),
    "write": (
        "simulations.cli.deploy.write:write",
        "Write nginx.conf and the unit files anew, after a change of deployment.toml.",
    ),
    "app": (
        "simulations.cli.deploy.app:app",
        "Print the SHA-256 of the app that runs ship, by which nodes approve it.",
    ),
    "submit": (
        "simulations.cli.deploy.operator.submit:submit",
        "Start an experiment on the nodes and follow it; the exit status tells how it ended.",
    ),
    "status": (
        "simulations.cli.deploy.operator.status:status",
        "Show the nodes, the runs, and what needs attention.",
    ),
    "logs": (
        "simulations.cli.deploy.operator.logs:logs",
        "Print a run's log, or a server program's.",
    ),
    "stop": (
        "simulations.cli.deploy.operator.stop:stop",
        "Stop a run; `resume` goes on after its last finished round.",
    ),
    "resume": (
        "simulations.cli.deploy.operator.resume:resume",
        "Go on with a run that failed or was stopped, after its last finished round.",
    ),
    "approve": (
        "simulations.cli.deploy.silo.approve:approve",
        "Allow a bundle of code to run on this silo's data; tell how it differs from what is installed.",
    ),
    "doctor": (
        "simulations.cli.deploy.silo.doctor:doctor",
        "Tell what this machine has for a node, and what is missing; exit status 1 where something is.",
    ),
}

group = lazy_group(
    "deploy", "Run federations on real machines: server, nodes, certificates, runs.", COMMANDS
)
