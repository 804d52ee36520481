"""``fedllm deploy``: set up and operate a federation on real machines.

Commands that make a deployment and keep its programs running are here, the operator's commands for runs in ``operator``, those of a
silo on its own machine in ``silo``.
"""

from __future__ import annotations

from simulations.cli.lazy import Table, lazy_group

COMMANDS: Table = {
    "init": (
        "simulations.cli.deploy.init:init",
        "Create a deployment: certificates, a key per node, the app, unit files.",
    ),
    "server": (
        "simulations.cli.deploy.server:server",
        "Run the server's programs (SuperLink, SuperExec, nginx) until interrupted.",
    ),
    "node": (
        "simulations.cli.deploy.node:node",
        "Run a node (SuperNode) on the silo's machine until interrupted.",
    ),
    "add-node": (
        "simulations.cli.deploy.add_node:add_node",
        "Add a node, or replace a node's key (the old key is then refused).",
    ),
    "remove-node": (
        "simulations.cli.deploy.remove_node:remove_node",
        "Remove a node; the server then refuses its key.",
    ),
    "register": (
        "simulations.cli.deploy.register:register",
        "Register the nodes with a running SuperLink (`deploy server` does this at start).",
    ),
    "renew": (
        "simulations.cli.deploy.renew:renew",
        "Renew the key and certificate of the server or the operator.",
    ),
    "write": (
        "simulations.cli.deploy.write:write",
        "Rewrite nginx.conf and the unit files after a change of deployment.toml.",
    ),
    "app": (
        "simulations.cli.deploy.app:app",
        "Print the SHA-256 of the app that runs ship; nodes approve the app by this hash.",
    ),
    "submit": (
        "simulations.cli.deploy.operator.submit:submit",
        "Start an experiment on the nodes and follow its log; exit 1 if the run fails.",
    ),
    "status": (
        "simulations.cli.deploy.operator.status:status",
        "Show nodes, runs and warnings.",
    ),
    "logs": (
        "simulations.cli.deploy.operator.logs:logs",
        "Print the log of a run or of a server program.",
    ),
    "stop": (
        "simulations.cli.deploy.operator.stop:stop",
        "Stop a run; `resume` continues after its last finished round.",
    ),
    "resume": (
        "simulations.cli.deploy.operator.resume:resume",
        "Resume a failed or stopped run after its last finished round.",
    ),
    "approve": (
        "simulations.cli.deploy.silo.approve:approve",
        "Approve a code bundle to run on this silo's data; print how it differs from the installed code.",
    ),
    "doctor": (
        "simulations.cli.deploy.silo.doctor:doctor",
        "Check a node's machine for everything it needs; exit 1 if something is missing.",
    ),
}

group = lazy_group(
    "deploy", "Run a federation on real machines: server, nodes, certificates, runs.", COMMANDS
)
