"""Real processes: a server with TLS, node authentication and nginx, two nodes, whole runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from deployments import Federation, free_ports, wait_for

from fedllm.run.folder import RunFolder
from privacy.ledger.ledger import Ledger
from server.deployment import certificates
from server.deployment.control import Control, connect
from server.deployment.folder import NODE, DeploymentError

pytestmark = pytest.mark.slow


@pytest.fixture
def experiment(tiny_tree: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    """Two rounds; the server has no file of the silos."""
    tree = tiny_tree(**{"server.rounds": 2, "data.train": "not-at-the-server.jsonl"})
    path = tmp_path / "experiment.toml"
    path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    return path


def test_a_run_over_two_nodes(federation: Federation, experiment: Path) -> None:
    wait_for(
        lambda: federation.call("status", "--json").stdout.count('"online"') == 2,
        "both nodes to be online",
    )
    done = federation.call("submit", str(experiment))
    assert done.returncode == 0, done.stdout + done.stderr + federation.log("superexec")
    assert "finished:completed, round 2 of 2" in done.stdout
    assert "round 2: 2 of 2 silos" in done.stdout
    run = RunFolder.open(next(federation.folder.runs.iterdir()))
    assert run.state()["status"] == "finished"
    rounds = [record for record in run.metrics() if record["kind"] == "round"]
    assert [record["replied"] for record in rounds] == [2, 2]
    assert (run.path / "report.html").is_file()
    assert (run.path / "adapter").is_dir()
    for name in ("alpha", "beta"):
        rows = Ledger(federation.folder.node(name) / "ledger.sqlite").entries()
        assert len(rows) == 2, name
    shown = json.loads(federation.call("status", "--json").stdout)
    assert [r["status"] for r in shown["runs"]] == ["finished:completed"]
    assert "REFUSED" not in federation.log("proxy-access")


def test_an_unregistered_node_is_refused(federation: Federation, tmp_path: Path) -> None:
    part = tmp_path / "stranger"
    shutil.copytree(federation.folder.node("alpha"), part, ignore=lambda *_: ["state", "logs"])
    (part / "node.key").unlink()
    certificates.make_node_key(part / "node.key", part / "node.pub")
    silo = part / "silo.toml"
    silo.write_text(silo.read_text().replace("alpha", "stranger"))
    text = (part / NODE).read_text().replace("alpha", "stranger")
    port = next(line for line in text.splitlines() if line.startswith("port"))
    (part / NODE).write_text(text.replace(port, f"port = {free_ports(1)[0]}"))
    federation.begin("stranger", "node", "--folder", str(part))
    try:
        wait_for(
            lambda: "the server refused this node's key" in federation.said("stranger"),
            "the refusal at the node",
        )
    finally:
        federation.end("stranger")
    assert (
        'REFUSED "POST /v1/fleet/activate-node" status=412 why="SuperLink: unknown key'
        in federation.log("proxy-access")
    )
    names = {n["name"] for n in json.loads(federation.call("status", "--json").stdout)["nodes"]}
    assert names == {"alpha", "beta"}


def test_the_operator_submits_from_elsewhere_and_failures_are_told(
    federation: Federation, experiment: Path, tmp_path: Path
) -> None:
    ports = federation.folder.load().ports
    tunnel = (
        tmp_path / "tunnel"
    )  # as `ssh -L` makes the loopback of the server's machine the operator's
    tunnel.mkdir()
    (tunnel / "operator.toml").write_text(f'server = "127.0.0.1:{ports.superlink}"\n')
    shutil.copy(federation.folder.ca, tunnel / "ca.pem")
    for folder in (federation.folder.operator, tunnel):
        with connect(folder) as link:
            assert [n.name for n in link.nodes()] == ["alpha", "beta"]
    done = federation.call("submit", str(experiment), "--silos", "alpha,gamma")
    assert done.returncode == 2
    assert "Expected --silos to name nodes (alpha, beta), got gamma" in done.stderr
    done = federation.call("submit", str(experiment), "--set", "model.name=/not/there")
    assert done.returncode == 1
    assert "finished:failed" in done.stdout
    assert "/not/there" in done.stdout
    with Control(f"127.0.0.1:{ports.nodes}", federation.folder.ca) as link:  # noqa: SIM117
        with pytest.raises(DeploymentError, match="this port serves only nodes"):
            link.runs()
