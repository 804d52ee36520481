"""Folder of a deployment: ``deployment.toml`` and the paths of its files.

The folder belongs to the operator and is on the server's machine. The files for the other machines are
below ``for-nodes/NAME`` and ``for-operator``; copy each of these folders to its machine.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedllm.files.durable import write_text

DEPLOYMENT = "deployment.toml"
NODE = "node.toml"
OPERATOR = "operator.toml"
ENVIRONMENT = "FEDLLM_DEPLOYMENT"
"""Environment variable with the folder, used if no option names one."""

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
_HOST = re.compile(
    r"^(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$"
)

Port = Annotated[int, Field(ge=1, le=65535)]


class DeploymentError(ValueError):
    """A deployment's folder, keys, programs or network are invalid."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ports(_Section):
    """TCP ports on the server's machine.

    Attributes:
        nodes: public; TLS, serves only the nodes' requests.
        superlink: loopback only; all of Flower's interfaces, including the one that starts runs.
        operator: public; TLS, requires the operator's certificate. 0: closed; runs are
            submitted on the server's machine (or through an SSH tunnel).
    """

    nodes: Port = 8443
    superlink: Port = 8000
    operator: Annotated[int, Field(ge=0, le=65535)] = 0

    @model_validator(mode="after")
    def _distinct(self) -> Ports:
        used = [port for port in (self.nodes, self.superlink, self.operator) if port]
        if len(set(used)) != len(used):
            raise ValueError(
                f"Expected distinct ports, got nodes={self.nodes}, superlink={self.superlink}, "
                f"operator={self.operator}"
            )
        return self


class PortLimits(_Section):
    """Limits on the requests of one caller; requests beyond them are answered with 503 and retried.

    Attributes:
        connections: concurrent requests from one address.
        requests: requests per second from one address; bursts of four times as many.
        pushes: concurrent pieces of answers from all addresses together. Each is up to 8 MiB, and is in
            SuperLink's memory before it checks the signature.
    """

    connections: Annotated[int, Field(ge=1, le=1000)] = 64
    requests: Annotated[int, Field(ge=1, le=10000)] = 200
    pushes: Annotated[int, Field(ge=1, le=1000)] = 16


class Machines(_Section):
    """Paths on the machines; written into the unit files.

    Attributes:
        programs: folder with ``fedllm`` and Flower's programs (a virtual environment's ``bin``).
        folder: path of the deployment's files on a machine.
        user: user that runs the services.
    """

    programs: str = "/opt/fedllm/bin"
    folder: str = "/srv/fedllm"
    user: str = "fedllm"


class Deployment(_Section):
    """Members of a federation and addresses of its server (``deployment.toml``).

    Attributes:
        name: name of the federation.
        hosts: DNS names and IP addresses at which nodes and the operator reach the server; in its
            certificate. The nodes use the first.
        nodes: names of the nodes; each serves the silo of the same name.
    """

    name: str = "fedllm"
    hosts: tuple[str, ...] = Field(min_length=1)
    nodes: tuple[str, ...] = ()
    ports: Ports = Ports()
    port_limits: PortLimits = PortLimits()
    machines: Machines = Machines()

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, values: Any) -> Any:
        """Read the section ``[doors]`` of earlier versions as ``[port_limits]``."""
        if isinstance(values, dict) and "doors" in values:
            if "port_limits" in values:
                raise ValueError("Expected port_limits without its old name doors, got both")
            values = {"port_limits" if key == "doors" else key: v for key, v in values.items()}
        return values

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not is_address(host) and not _HOST.match(host):
                raise ValueError(f"Expected a host name or an IP address, got {host!r}")
        return hosts

    @field_validator("name", "nodes")
    @classmethod
    def _check_names(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else list(value)
        for name in names:
            check_name(name)
        if len(set(names)) != len(names):
            raise ValueError(f"Expected distinct nodes, got {', '.join(names)}")
        return value

    @property
    def address(self) -> str:
        """``host:port`` of the nodes' port; an IPv6 address in brackets."""
        return join_address(self.hosts[0], self.ports.nodes)


class NodeFile(_Section):
    """Configuration of a node (``node.toml``, on the node's machine).

    Attributes:
        name: name of the node and of its silo.
        server: ``host:port`` of the server's port for nodes.
        port: loopback port of the node's own programs; each node of a machine needs a different one.
        silo: the silo config (data, ledger, budget, limits); relative to this one.
        config: additional entries of Flower's node configuration; paths among them (``...-file``) are relative to
            this file.
    """

    name: str
    server: str
    port: Port = 9094
    silo: str = "silo.toml"
    config: dict[str, str | int | float | bool] = {}

    @field_validator("name")
    @classmethod
    def _check(cls, name: str) -> str:
        check_name(name)
        return name


class OperatorFile(_Section):
    """Address of the operator's port (``operator.toml``, on the operator's machine)."""

    server: str


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` may name a node (and a file)."""
    if not _NAME.match(name):
        raise ValueError(
            f"Expected a name of letters, digits, dots, hyphens and underscores, got {name!r}"
        )


def is_address(host: str) -> bool:
    """Return True if ``host`` is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Split ``host:port`` into host and port.

    Raises:
        DeploymentError: it is not of this form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise DeploymentError(f"Expected server=HOST:PORT, got server={address!r}")
    return host.strip("[]"), int(port)


@dataclass(frozen=True)
class Folder:
    """The files of a deployment's folder."""

    path: Path

    @property
    def deployment(self) -> Path:
        return self.path / DEPLOYMENT

    @property
    def ca(self) -> Path:
        return self.path / "tls" / "ca.pem"

    @property
    def ca_key(self) -> Path:
        return self.path / "tls" / "ca.key"

    @property
    def server_certificate(self) -> Path:
        return self.path / "tls" / "server.pem"

    @property
    def server_key(self) -> Path:
        return self.path / "tls" / "server.key"

    @property
    def operator_certificate(self) -> Path:
        """The operator's latest certificate; its key is only in ``for-operator``."""
        return self.path / "tls" / "operator.pem"

    @property
    def secret(self) -> Path:
        """Secret shared by SuperLink and SuperExec only: its holder may act for the server app."""
        return self.path / "tls" / "superexec.secret"

    @property
    def proxy(self) -> Path:
        return self.path / "nginx.conf"

    @property
    def app(self) -> Path:
        """The code that a submitted run ships."""
        return self.path / "app"

    @property
    def state(self) -> Path:
        """SuperLink's database, Flower's own folder, process ids."""
        return self.path / "state"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def extracts(self) -> Path:
        """The last signed head of each silo's ledger, of all runs; returned to the silo with each task."""
        return self.path / "extracts"

    @property
    def units(self) -> Path:
        return self.path / "units"

    @property
    def operator(self) -> Path:
        return self.path / "for-operator"

    def public_key(self, node: str) -> Path:
        return self.path / "nodes" / f"{node}.pub"

    def node(self, node: str) -> Path:
        return self.path / "for-nodes" / node

    def load(self) -> Deployment:
        """Return the deployment that the folder describes.

        Raises:
            DeploymentError: there is none, or it is not valid.
        """
        return read(self.deployment, Deployment, "a deployment's folder (`fedllm deploy init`)")

    def save(self, deployment: Deployment) -> None:
        """Write ``deployment.toml``."""
        write_toml(self.deployment, deployment, _HEAD)


_HEAD = (
    "# Members and addresses of a federation. Every `fedllm deploy` command reads this file.\n\n"
)


def find_folder(given: Path | None, file: str = DEPLOYMENT) -> Path:
    """Return the folder that an option, the environment variable FEDLLM_DEPLOYMENT or the working directory names.

    Raises:
        DeploymentError: none of them has ``file``.
    """
    if given is not None:
        chosen = given
    else:
        chosen = Path(os.environ.get(ENVIRONMENT) or ".")
    chosen = chosen.expanduser().absolute()
    if not (chosen / file).is_file():
        said = "--folder" if given else ENVIRONMENT if os.environ.get(ENVIRONMENT) else "here"
        raise DeploymentError(
            f"Expected {file} in the folder ({said}: {chosen}), found none; name it by --folder, or "
            f"make one by `fedllm deploy init`"
        )
    return chosen


_Model = TypeVar("_Model", bound=BaseModel)


def read(path: Path, kind: type[_Model], what: str) -> _Model:
    """Return a TOML file as a checked value.

    Raises:
        DeploymentError: it is missing, no TOML, or not valid; the message names the key.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DeploymentError(f"Expected {path.name} in {what}, found none at {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DeploymentError(f"Expected TOML in {path}: {error}") from None
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DeploymentError(
            f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}"
        ) from None


def write_toml(path: Path, value: BaseModel, head: str = "") -> None:
    """Write a checked value as TOML."""
    write_text(path, head + tomli_w.dumps(value.model_dump(mode="json")))
