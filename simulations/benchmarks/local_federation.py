"""A deployment on this machine: its folder, its server and its nodes as processes of ``fedllm deploy``, with
TLS, node authentication and nginx. For tests and for measurements."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tomli_w

from client.config import load_silo
from client.executor.approval import approve
from fedllm.run.folder import RunFolder
from server.deployment import setup
from server.deployment.app_bundle import bundle, bundle_hash
from server.deployment.control import connect
from server.deployment.folder import NODE, Deployment, DeploymentError, Folder, Ports
from simulations.benchmarks.support.tiny import LABELS

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0
"""Seconds for what takes a few on a machine that does nothing else."""
SILO: dict[str, Any] = {
    "budget": {"epsilon": 1e6, "delta": 1e-5, "accountant": "rdp"},
    "limits": {
        "rounds": 1000,
        "local_steps": 1000,
        "sampling_rate": 1.0,
        "noise_multiplier": 0.0,
        "models": ["*"],
        "randomness": ["os", "seeded"],
        "quantities": ["update", "size"],
    },
    "model": {"device": "cpu"},
}
"""A silo config whose limits nothing here runs into."""
OVER = ("finished", "stopped", "failed", "interrupted")


def free_ports(count: int) -> list[int]:
    """Return unused ports."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def wait_for(done: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until ``done`` returns a true value, and return it.

    Raises:
        AssertionError: it was not within ``seconds``.
    """
    end = time.monotonic() + seconds
    while not (found := done()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s for {what}")
        time.sleep(0.1)
    return found


def processes_of(folder: Path, program: str = "") -> list[int]:
    """Return ids of the processes whose command or environment names a folder (or something in it), oldest first.

    Args:
        program: only those whose command has this text.
    """
    names = (f"{folder}/".encode(), f"{folder}\0".encode())
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            known = command + b"\0" + (entry / "environ").read_bytes() + b"\0"
        except OSError:
            continue
        if any(name in known for name in names) and program.encode() in command and command:
            found.append(int(entry.name))
    return sorted(pid for pid in found if pid != os.getpid())


def make_folder(path: Path, *nodes: str, hosts: Sequence[str] = ("127.0.0.1",)) -> Folder:
    """Return a deployment on this machine, on ports that no one uses.

    Raises:
        DeploymentError: nginx or Flower is not installed.
    """
    first, second, third = free_ports(3)
    ports = Ports(nodes=first, superlink=second, operator=third)
    folder = Folder(path)
    setup.create(folder, Deployment(hosts=tuple(hosts), nodes=nodes, ports=ports))
    return folder


def states_of(folder: Path) -> dict[str, str]:
    """Return the status of each node, as an operator's folder gets it; empty where the server does not answer now."""
    try:
        with connect(folder) as link:
            return {node.name: node.status for node in link.nodes()}
    except DeploymentError:
        return {}


class LocalFederation:
    """A server and nodes as processes of ``fedllm deploy``.

    Args:
        folder: the deployment.
        words: folder with ``train.jsonl`` (:func:`simulations.benchmarks.support.tiny.save_words`): text, label and
            organisation; each node gets the examples of the organisation of its name.
        labels: the classes.

    Attributes:
        processes: what was started, by name.
        outputs: files with what each wrote.
    """

    def __init__(self, folder: Folder, words: Path, labels: Sequence[str] = LABELS) -> None:
        self.folder = folder
        self.words = words
        self.labels = labels
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.outputs: dict[str, Path] = {}
        rows = (words / "train.jsonl").read_text(encoding="utf-8").splitlines()
        nodes = folder.load().nodes
        for name, port in zip(nodes, free_ports(len(nodes)), strict=True):
            data = folder.node(name) / "data.jsonl"
            own = [row for row in rows if json.loads(row)["organisation"] == name]
            data.write_text("\n".join(own) + "\n", encoding="utf-8")
            self.edit_node(name, port)

    # What people do

    def edit_node(self, name: str, port: int) -> None:
        """Fill in node.toml and silo.toml, and approve the app, as a silo's staff does."""
        part = self.folder.node(name)
        path = part / NODE
        text = path.read_text(encoding="utf-8").replace("port = 9094", f"port = {port}")
        path.write_text(text, encoding="utf-8")
        self.write_silo(name)
        approve(part / "approved.json", bundle_hash(bundle(self.folder.app)))

    def write_silo(self, name: str, **changes: Any) -> None:
        """Write the silo config with ``changes`` of its top level."""
        data = {"path": "data.jsonl", "labels": list(self.labels)}
        tree = SILO | {"name": name, "data": data} | changes
        (self.folder.node(name) / "silo.toml").write_text(tomli_w.dumps(tree), encoding="utf-8")

    def environment(self, name: str) -> Mapping[str, str]:
        """Return the additional environment of a process of this name."""
        return {}

    def command(self, name: str, *words: str) -> list[str]:
        """Return ``fedllm deploy ...`` as this participant types it."""
        return [sys.executable, "-m", "simulations.cli.main", "deploy", *words]

    def begin(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Return the start a command; its output goes to a file."""
        self.outputs[name] = self.folder.path.parent / f"{name}.out"
        with open(self.outputs[name], "ab") as output:
            process = subprocess.Popen(
                self.command(name, *words),
                cwd=ROOT,
                env=os.environ | self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes[name] = process
        return process

    def call(self, *words: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
        """Run an operator's command to its end."""
        return subprocess.run(
            self.command("server", *words, "--folder", str(self.folder.path)),
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start_server(self) -> None:
        """Start the server and wait until it is ready."""
        self.begin("server", "server", "--folder", str(self.folder.path))
        wait_for(lambda: "ready:" in self.said("server"), "the server to be ready")

    def start_node(self, name: str) -> None:
        """Start a node."""
        self.begin(name, "node", "--folder", str(self.folder.node(name)))

    def submit(self, experiment: Path, *words: str) -> RunFolder:
        """Return the start an experiment and return its run folder, once that is there."""
        known = set(self.folder.runs.glob("*"))
        done = self.call("submit", str(experiment), "--detach", *words)
        if done.returncode:
            raise AssertionError(done.stdout + done.stderr)

        def made() -> list[Path]:
            places = self.folder.runs.glob("*/state.json")
            return [place.parent for place in places if place.parent not in known]

        return RunFolder.open(wait_for(made, "a run folder")[0])

    @contextlib.contextmanager
    def up(self) -> Iterator[Self]:
        """Start the server and all nodes, wait until they are online, and end everything at the end."""
        nodes = self.folder.load().nodes
        try:
            self.start_server()
            for name in nodes:
                self.start_node(name)
            self.wait_until_online(*nodes)
            yield self
        finally:
            self.close()

    def run(self, experiment: Path, seconds: float = 3600) -> RunFolder:
        """Run an experiment to its end.

        Raises:
            RuntimeError: it did not finish.
        """
        run = self.submit(experiment)
        if self.wait_until_over(run, seconds) != "finished":
            raise RuntimeError(f"the run is {run.state()['status']}: {run.state()['message']}")
        return run

    # What is to be seen

    def said(self, name: str) -> str:
        """Return the output of a process."""
        return self.outputs[name].read_text(encoding="utf-8")

    def log(self, name: str) -> str:
        """Return the log of one of the server's programs."""
        path = self.folder.logs / f"{name}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def ledger(self, name: str) -> Path:
        """Return a silo's ledger."""
        return Path(load_silo(self.folder.node(name) / "silo.toml").ledger)

    def node_states(self) -> dict[str, str]:
        """Return the status of each node, as the server sees it; empty where it does not answer now."""
        return states_of(self.folder.path)

    def wait_until_online(self, *nodes: str) -> None:
        """Wait until the server sees these nodes."""

        def online() -> bool:
            states = self.node_states()
            return all(states.get(name) == "online" for name in nodes)

        wait_for(online, f"{', '.join(nodes)} to be online")

    def wait_for_round(self, run: RunFolder, server_round: int, seconds: float = PATIENCE) -> None:
        """Wait until a round is finished; a run that ended otherwise is an error."""

        def reached() -> bool:
            state = run.state()
            if state["round"] < server_round and state["status"] in OVER:
                raise AssertionError(f"the run is {state['status']}: {state['message']}")
            return bool(state["round"] >= server_round)

        wait_for(reached, f"round {server_round}", seconds)

    def wait_until_over(self, run: RunFolder, seconds: float = PATIENCE) -> str:
        """Return the run's status at its end."""
        wait_for(lambda: run.state()["status"] in OVER, "the run to be over", seconds)
        return str(run.state()["status"])

    # What happens to processes

    def signal_node(self, name: str, number: int) -> None:
        """Send a signal to every process of a node."""
        pids = processes_of(self.folder.node(name))
        if not pids:
            raise AssertionError(f"{name} has no process")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_node(self, name: str) -> None:
        """Kill a node as a power failure does."""
        self.signal_node(name, signal.SIGKILL)
        self.processes.pop(name).wait(60)
        wait_for(lambda: not processes_of(self.folder.node(name)), f"{name} to be gone")

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        """Ask what was started under this name to end, and wait for it."""
        process = self.processes.pop(name)
        process.send_signal(number)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End everything, and see to it that no process is left."""
        for name in reversed(list(self.processes)):
            self.end(name)
        for pid in processes_of(self.folder.path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
