"""Deployments in tests: nginx or a skip, and requests as they are."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from pathlib import Path

import pytest

from server.deployment.folder import Folder
from simulations.benchmarks import local_federation
from simulations.benchmarks.local_federation import ROOT, free_ports, wait_for
from simulations.benchmarks.local_federation import LocalFederation as Federation

__all__ = [
    "ROOT",
    "SIGNED",
    "Federation",
    "ask",
    "free_ports",
    "listens",
    "make_folder",
    "wait_for",
]

SIGNED = {
    "flwr-public-key": "A" * 200,
    "flwr-timestamp": "2026-01-01T00:00:00+00:00",
    "flwr-signature": "A" * 140,
}
"""Headers that have the form of a node's signature, and are none."""


def needs_nginx() -> None:
    """Skip, saying so, where nginx is not installed."""
    if shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")


def make_folder(path: Path, *nodes: str, hosts: tuple[str, ...] = ("127.0.0.1",)) -> Folder:
    """A deployment on this machine; the test is skipped where nginx is missing."""
    needs_nginx()
    return local_federation.make_folder(path, *nodes, hosts=hosts)


def listens(port: int) -> bool:
    """Whether somebody accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(
    port: int, target: str, *, ca: Path, pair: tuple[Path, Path] | None = None, method: str = "POST"
) -> tuple[int, str]:
    """Status and body of one request whose target is sent as it is (no client tidies it up)."""
    context = ssl.create_default_context(cafile=str(ca))
    if pair is not None:
        context.load_cert_chain(*pair)
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in SIGNED.items())
        + "\r\n"
    )
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(head.encode("ascii"))
        answer = b""
        while piece := secure.recv(65536):
            answer += piece
    top, _, body = answer.decode("utf-8", "replace").partition("\r\n\r\n")
    return int(top.split()[1]), body
