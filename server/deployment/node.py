"""A node's side of the connection: what to check before it starts, and why it ended, in words."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path

from server.deployment.folder import NODE, DeploymentError, NodeFile, read, split_address
from server.deployment.processes import last_line
from server.deployment.programs import Program
from server.deployment.supernode import CONNECTION_LOST


class Unreachable(DeploymentError):
    """No one listens at the server's port (yet)."""


_REFUSED = re.compile(r"\[code: \d+\]")


def load_node(folder: Path) -> NodeFile:
    """Read ``node.toml`` and check the files that must accompany it.

    Raises:
        DeploymentError: it is missing or not valid, a key is missing, or others may read the key.
    """
    node = read(folder / NODE, NodeFile, "a node's folder (for-nodes/NAME of the deployment)")
    for name in ("ca.pem", "node.key"):
        if not (folder / name).is_file():
            raise DeploymentError(f"Expected {name} in {folder}, found none")
    mode = (folder / "node.key").stat().st_mode & 0o077
    if mode:
        raise DeploymentError(
            f"Expected a node.key that only its owner can read, others can: "
            f"chmod 600 {folder / 'node.key'}"
        )
    return node


def check_server(folder: Path, node: NodeFile, timeout: float = 10.0) -> None:
    """Open and close a connection to the server's port, and tell what is wrong with it.

    Raises:
        DeploymentError: there is no such host, or its certificate is not one that
            this node trusts: of another authority, ended, not yet valid, or of another name.
        Unreachable: what may pass by itself: no one listens, or the network is cut.
    """
    host, port = split_address(node.server)
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    try:
        with (
            socket.create_connection((host, port), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message
        hint = {
            10: "has ended: the operator makes a new one by `fedllm deploy renew`",
            9: "is not valid yet: compare the clocks of the two machines",
            62: f"is not for {host}: the operator adds it to `hosts` and renews the certificate",
            64: f"is not for {host}: the operator adds it to `hosts` and renews the certificate",
        }.get(
            error.verify_code,
            f"is not of the authority in {folder / 'ca.pem'}: this is another server, or the "
            f"authority was renewed and ca.pem was not",
        )
        raise DeploymentError(f"The certificate of {node.server} {hint} ({reason})") from None
    except socket.gaierror as error:
        raise DeploymentError(
            f"Expected server=HOST:PORT of the server, got server={node.server!r}: {error.strerror}"
        ) from None
    except (OSError, ssl.SSLError) as error:
        raise Unreachable(f"The server {node.server} cannot be reached: {error}") from None


def why_it_ended(program: Program, text: str, status: int) -> str:
    """Explain the end of a SuperNode, from its last output and its exit status."""
    if status == CONNECTION_LOST:
        return last_line(text)
    lowered = text.lower()
    if "certificate" in lowered and "verify" in lowered:
        return "the server's certificate is not one that this node trusts"
    if _REFUSED.search(text) and "activat" in lowered:
        return (
            "the server refused this node's key: either it is not registered there (the operator "
            "sees that by `fedllm deploy status`), or this node's last process was killed and the "
            "server has not given it up yet, which takes a minute"
        )
    if status == 0:  # what Flower does on 401, without a word
        return (
            "it was asked to end: by the server, which no longer knows this node's key (the next start "
            "shows it), or by a signal"
        )
    return last_line(text)
