"""The programs of a deployment: Flower's and nginx, with the options and environment they need."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.deployment.folder import Deployment, DeploymentError, Folder, NodeFile

SUPERLINK, SUPEREXEC, PROXY = "superlink", "superexec", "proxy"
SUPERNODE, EXECUTOR = "supernode", "executor"


@dataclass(frozen=True)
class Program:
    """A program to keep running.

    Attributes:
        name: for people.
        command: with its options.
        environment: in addition to this process's.
        folder: its working directory.
        log: file that its output is appended to.
        restart_after: seconds between its end and its next start; twice as many each time that it ends soon
            after its start, up to ``restart_at_most``.
        restart_at_most: the longest of these pauses, seconds.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    restart_after: float = 5.0
    restart_at_most: float = 5.0

    def line(self) -> str:
        """Return the command as one types it."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.command)])


def flower_environment(home: Path) -> dict[str, str]:
    """Return the environment that confines Flower's programs to this machine: no telemetry, no update checks, no
    run-time installation, files below ``home``."""
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def server_programs(folder: Folder, deployment: Deployment) -> list[Program]:
    """Return SuperLink, SuperExec (which starts the server app) and nginx, in the order of their start.

    SuperExec is a separate process (``--isolation process``) and the database is a file, so that a
    run outlives a restart of the SuperLink.

    Raises:
        DeploymentError: a program is not installed.
    """
    address = f"127.0.0.1:{deployment.ports.superlink}"
    environment = flower_environment(folder.state / "flwr")
    superlink = [
        find_program("flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(deployment.ports.superlink)),
        *("--ssl-ca-certfile", str(folder.ca)),
        *("--ssl-certfile", str(folder.server_certificate)),
        *("--ssl-keyfile", str(folder.server_key)),
        "--enable-supernode-auth",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(folder.secret)),
        *("--database", str(folder.state / "superlink.db")),
    ]
    superexec = [
        find_program("flower-superexec"),
        *("--runtime-api-address", address),
        *("--root-certificates", str(folder.ca)),
        *("--superexec-auth-secret-file", str(folder.secret)),
    ]
    proxy = [
        find_program("nginx", "apt-get install nginx-light"),
        *("-p", f"{folder.path}/", "-c", "nginx.conf", "-e", "logs/proxy-error.log"),
    ]

    def program(name: str, command: list[str], environment: Mapping[str, str]) -> Program:
        return Program(name, tuple(command), folder.path, folder.logs / f"{name}.log", environment)

    return [
        program(SUPERLINK, superlink, environment),
        program(SUPEREXEC, superexec, environment | {"PATH": search_path()}),
        program(PROXY, proxy, {}),
    ]


def node_programs(folder: Path, node: NodeFile) -> list[Program]:
    """Return a node's SuperNode, and the silo's executor, which runs the app instead of Flower's own.

    The two share a secret, so that no other user of the machine takes the silo's tasks.

    Raises:
        DeploymentError: the node's configuration cannot be passed on.
    """
    secret = folder / "state" / "superexec.secret"
    supernode = [
        *(sys.executable, "-m", "server.deployment.supernode"),
        *("--superlink", node.server),
        *("--root-certificates", str(folder / "ca.pem")),
        *("--auth-supernode-private-key", str(folder / "node.key")),
        *("--host", "127.0.0.1", "--port", str(node.port)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(secret)),
        *("--node-config", node_config(folder, node)),
    ]
    executor = [
        *(sys.executable, "-m", "client.executor.executor"),
        *("--silo", str(silo_path(folder, node))),
        *("--runtime-api-address", f"127.0.0.1:{node.port}", "--insecure"),
        *("--superexec-auth-secret-file", str(secret)),
    ]
    environment = flower_environment(folder / "state" / "flwr") | {"PATH": search_path()}

    def program(name: str, command: list[str], first: float, most: float) -> Program:
        log = folder / "logs" / f"{name}.log"
        return Program(name, tuple(command), folder, log, environment, first, most)

    return [program(SUPERNODE, supernode, 5.0, 120.0), program(EXECUTOR, executor, 2.0, 2.0)]


def silo_path(folder: Path, node: NodeFile) -> Path:
    """Return the path of a node's silo config."""
    return (folder / Path(node.silo).expanduser()).absolute()


def node_config(folder: Path, node: NodeFile) -> str:
    """Return Flower's node configuration: the silo config and what node.toml adds, paths made absolute."""
    entries: dict[str, str | int | float | bool] = {"silo-file": node.silo, **node.config}
    written = []
    for key, value in entries.items():
        if isinstance(value, str):
            if key.endswith("-file"):
                value = str((folder / Path(value).expanduser()).absolute())
            if '"' in value or "\\" in value:
                raise DeploymentError(f"Expected no quotes or backslashes in {key}, got {value!r}")
            written.append(f'{key}="{value}"')
        else:
            written.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    return " ".join(written)


def find_program(name: str, how: str = "install the wheel of fedllm again") -> str:
    """Return the path of a program: next to this Python first, then on PATH (and in /usr/sbin).

    Raises:
        DeploymentError: it is not installed.
    """
    found = shutil.which(name, path=f"{search_path()}{os.pathsep}/usr/sbin")
    if found is None:
        raise DeploymentError(f"Expected the program {name}, found none on PATH: {how}")
    return found


def search_path() -> str:
    """Return PATH with the folder of this Python first: Flower's programs start each other by name."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
