"""Deployments in tests: a folder on free ports, requests as they are, and a federation of processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_silo import write_silo

from client.approval import approve
from server.deployment import setup
from server.deployment.app_bundle import bundle, bundle_hash
from server.deployment.folder import NODE, Deployment, Folder, Ports

ROOT = Path(__file__).resolve().parents[2]
GENEROUS = {
    "budget.epsilon": 1000.0,
    "limits.rounds": 1000,
    "limits.local_steps": 1000,
    "limits.sampling_rate": 1.0,
    "limits.noise_multiplier": 0.0,
}
"""Limits of a silo that no test of the rest runs into."""
PATIENCE = 240.0
"""Seconds for what takes a few on a machine that does nothing else."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def needs_nginx() -> None:
    """Skip, saying so, where nginx is not installed."""
    if shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")


def make_folder(path: Path, *nodes: str) -> Folder:
    """A deployment on this machine."""
    needs_nginx()
    first, second, third = free_ports(3)
    ports = Ports(nodes=first, superlink=second, operator=third)
    folder = Folder(path)
    setup.create(folder, Deployment(hosts=("127.0.0.1",), nodes=nodes, ports=ports))
    return folder


def listens(port: int) -> bool:
    """Whether somebody accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(done: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """What ``done`` returns once that is true."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)
    return found


def ask(
    port: int, target: str, *, ca: Path, pair: tuple[Path, Path] | None = None, method: str = "POST"
) -> tuple[int, str]:
    """Status and body of one request whose target is sent as it is (no client tidies it up)."""
    context = ssl.create_default_context(cafile=str(ca))
    if pair is not None:
        context.load_cert_chain(*pair)
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
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


class Federation:
    """A server and nodes as processes of ``fedllm deploy``."""

    def __init__(self, folder: Folder, words: Path) -> None:
        self.folder = folder
        self.words = words
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.outputs: dict[str, Path] = {}
        rows = (words / "train.jsonl").read_text(encoding="utf-8").splitlines()
        for name, port in zip(
            folder.load().nodes, free_ports(len(folder.load().nodes)), strict=True
        ):
            data = folder.node(name) / "data.jsonl"
            own = [row for row in rows if json.loads(row)["organisation"] == name]
            data.write_text("\n".join(own) + "\n", encoding="utf-8")
            self.edit_node(name, port)

    def edit_node(self, name: str, port: int) -> None:
        """What the silo's people write into node.toml and their own file, and the app they approve."""
        part = self.folder.node(name)
        path = part / NODE
        text = path.read_text(encoding="utf-8").replace("port = 9094", f"port = {port}")
        path.write_text(text, encoding="utf-8")
        write_silo(part, None, Path("data.jsonl"), name=name, **GENEROUS)
        approve(part / "approved.json", bundle_hash(bundle(self.folder.app)))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "simulations.cli", "deploy", *words]

    def begin(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a command; its output goes to a file."""
        self.outputs[name] = self.folder.path.parent / f"{name}.out"
        with open(self.outputs[name], "ab") as output:
            process = subprocess.Popen(
                self.command(*words), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )
        self.processes[name] = process
        return process

    def said(self, name: str) -> str:
        return self.outputs[name].read_text(encoding="utf-8")

    def call(self, *words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*words, "--folder", str(self.folder.path)),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start_server(self) -> None:
        self.begin("server", "server", "--folder", str(self.folder.path))
        wait_for(lambda: "ready:" in self.said("server"), "the server to be ready")

    def start_node(self, name: str) -> None:
        self.begin(name, "node", "--folder", str(self.folder.node(name)))

    def log(self, name: str) -> str:
        path = self.folder.logs / f"{name}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(60)

    def close(self) -> None:
        for name in reversed(list(self.processes)):
            self.end(name)
