"""Making and changing a deployment's folder: keys, certificates, and the files made from its settings."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedllm.files.durable import write_text
from server.deployment import app_bundle, certificates
from server.deployment.folder import (
    NODE,
    OPERATOR,
    Deployment,
    DeploymentError,
    Folder,
    NodeFile,
    OperatorFile,
    join_address,
    write_toml,
)
from server.deployment.proxy import nginx_conf
from server.deployment.units import node_units, server_units


def create(folder: Folder, deployment: Deployment) -> str:
    """Make a new deployment: authority, certificates, a key for each node, the app, ready files.

    Returns:
        SHA-256 of the app's bundle.

    Raises:
        DeploymentError: the folder is not empty, or a needed program is not installed.
    """
    if folder.path.exists() and any(folder.path.iterdir()):
        raise DeploymentError(f"Expected an empty or new folder, got {folder.path}")
    for path in ("tls", "nodes", "state", "logs", "runs", "for-nodes"):
        (folder.path / path).mkdir(parents=True)
    for path in ("tls", "state", "for-nodes"):
        (folder.path / path).chmod(0o700)
    certificates.make_authority(deployment.name, folder.ca, folder.ca_key)
    certificates.make_secret(folder.secret)
    renew_server(folder, deployment)
    digest = app_bundle.make_app(folder.app)
    nodes, deployment = deployment.nodes, deployment.model_copy(update={"nodes": ()})
    folder.save(deployment)
    for name in nodes:
        deployment = add_node(folder, deployment, name)
    write_files(folder, deployment)
    return digest


def write_files(folder: Folder, deployment: Deployment) -> None:
    """Write what follows from ``deployment.toml``: nginx.conf and the unit files.

    Raises:
        DeploymentError: a needed program is not installed.
    """
    serial = ""
    if deployment.ports.operator:
        if not folder.operator_certificate.exists():
            renew_operator(folder, deployment)
        serial = certificates.serial(folder.operator_certificate)
    write_text(folder.proxy, nginx_conf(deployment, serial))
    _write_all(folder.units, server_units(folder, deployment))


def add_node(
    folder: Folder, deployment: Deployment, name: str, public_key: Path | None = None
) -> Deployment:
    """Add a node, or give one that is there a new key. It counts from the next registration on.

    Args:
        public_key: of a key that was made on the node (``ssh-keygen -t ecdsa -b 384``); None makes a
            pair here, of which the private half is in ``for-nodes/NAME`` until it is moved.

    Raises:
        DeploymentError: the key cannot be used.
    """
    deployment = Deployment.model_validate(
        deployment.model_dump() | {"nodes": tuple(dict.fromkeys((*deployment.nodes, name)))}
    )
    part = folder.node(name)
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True, mode=0o700)
    if public_key is None:
        certificates.make_node_key(part / "node.key", folder.public_key(name))
    else:
        certificates.read_node_key(public_key)
        shutil.copyfile(public_key, folder.public_key(name))
    shutil.copyfile(folder.ca, part / "ca.pem")
    write_toml(part / NODE, NodeFile(name=name, server=deployment.address), _NODE_HEAD)
    _write_all(part / "units", node_units(name, deployment))
    folder.save(deployment)
    return deployment


def remove_node(folder: Folder, deployment: Deployment, name: str) -> Deployment:
    """Take a node out. It counts from the next registration on.

    Raises:
        DeploymentError: there is no such node.
    """
    if name not in deployment.nodes:
        raise DeploymentError(
            f"Expected a node of this deployment ({', '.join(deployment.nodes) or 'none'}), got {name}"
        )
    deployment = deployment.model_copy(
        update={"nodes": tuple(node for node in deployment.nodes if node != name)}
    )
    folder.public_key(name).unlink(missing_ok=True)
    shutil.rmtree(folder.node(name), ignore_errors=True)
    folder.save(deployment)
    return deployment


def node_keys(folder: Folder, deployment: Deployment) -> dict[str, bytes]:
    """Return the public key of each node, as Flower registers it.

    Raises:
        DeploymentError: one is missing or cannot be used.
    """
    return {name: certificates.read_node_key(folder.public_key(name)) for name in deployment.nodes}


def renew_server(
    folder: Folder, deployment: Deployment, days: float = certificates.CERTIFICATE_DAYS
) -> None:
    """Make a new key and certificate for the server, with all of its ``hosts``; used from its next start on.

    Raises:
        DeploymentError: as :func:`certificates.make_certificate`.
    """
    certificates.make_certificate(
        folder.ca,
        folder.ca_key,
        folder.server_certificate,
        folder.server_key,
        name=deployment.hosts[0],
        hosts=(*deployment.hosts, *certificates.LOOPBACK),
        days=days,
    )


def renew_operator(
    folder: Folder, deployment: Deployment, days: float = certificates.CERTIFICATE_DAYS
) -> None:
    """Make the operator's part of the folder, with a new key and certificate. nginx refuses the old one after its
    next start with the written configuration.

    Raises:
        DeploymentError: the operator has no port (``ports.operator = 0``), or as
            :func:`certificates.make_certificate`.
    """
    if not deployment.ports.operator:
        raise DeploymentError(
            "Expected ports.operator > 0 in deployment.toml for a certificate of the operator, got 0"
        )
    part = folder.operator
    part.mkdir(exist_ok=True)
    part.chmod(0o700)
    certificates.make_certificate(
        folder.ca,
        folder.ca_key,
        part / "operator.pem",
        part / "operator.key",
        name=f"{deployment.name} operator",
        days=days,
    )
    shutil.copyfile(part / "operator.pem", folder.operator_certificate)
    shutil.copyfile(folder.ca, part / "ca.pem")
    where = join_address(deployment.hosts[0], deployment.ports.operator)
    write_toml(part / OPERATOR, OperatorFile(server=where))
    copy_app(folder)


def copy_app(folder: Folder) -> None:
    """Copy the app to the operator's part of the folder."""
    shutil.rmtree(folder.operator / "app", ignore_errors=True)
    shutil.copytree(folder.app, folder.operator / "app")


def _write_all(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


_NODE_HEAD = """\
# A node of a federation: copy this folder to its machine, with node.key readable by its owner alone.
# Start: fedllm deploy node --folder .
# What this silo trains on, its budget and its limits are in its own file, `silo`. The server never sees it.

"""
