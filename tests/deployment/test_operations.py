"""What an operator does to a federation that is up: stop and resume, renew, remove a node and let it in again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployments import Federation, make_folder, wait_for
from faulty_nodes import assert_same_model, write_experiment

from fedllm.run.folder import RunFolder
from fedllm.settings.io import load_settings
from privacy.ledger.ledger import Ledger
from server.deployment import certificates, programs
from server.deployment.control import connect
from simulations.in_process import federate

pytestmark = pytest.mark.slow
SILOS = ["alpha", "beta"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, word_files: Path) -> Iterator[Federation]:
    """A server and two nodes of its own, for what is done to it here."""
    path = tmp_path_factory.mktemp("operations") / "fedllm"
    made = Federation(make_folder(path, *SILOS), word_files)
    with made.up():
        yield made


@pytest.fixture
def experiment(tiny_tree: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    def make(**changes: Any) -> Path:
        changes = {"data.silo_names": SILOS, "privacy.epsilon": 1e5} | changes
        return write_experiment(tmp_path / "experiment.toml", tiny_tree(**changes))

    return make


def flwr(running: Federation, *words: str) -> subprocess.CompletedProcess[str]:
    """Flower's own command line, with the connection that docs/guides/deployment.md writes."""
    home = running.folder.state / "flwr"
    port = running.folder.load().ports.superlink
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "deployment"\n[superlink.deployment]\n'
        f'address = "127.0.0.1:{port}"\nroot-certificates = "{running.folder.ca}"\n',
        encoding="utf-8",
    )
    return subprocess.run(
        [programs.find_program("flwr"), *words],
        env=os.environ | programs.flower_environment(home),
        capture_output=True,
        text=True,
        timeout=600,
    )


def flower_id(running: Federation, run: RunFolder) -> str:
    with connect(running.folder.path) as link:
        return next(str(r.run_id) for r in link.runs() if Path(r.folder).name == run.path.name)


@pytest.mark.parametrize("how", ["fedllm", "flwr"])
def test_a_stopped_run_goes_on_where_it_was(
    how: str, running: Federation, experiment: Callable[..., Path], tmp_path: Path
) -> None:
    path = experiment(seed=61, **{"server.rounds": 5})
    run = running.submit(path)
    running.wait_for_round(run, 2)
    if how == "fedllm":
        done = running.call("stop", run.path.name)
        assert done.stdout == f"{run.path.name} is stopped\n", done.stderr
    else:
        done = flwr(running, "stop", flower_id(running, run), "deployment")
        assert done.returncode == 0, done.stdout + done.stderr
    shown = running.call("status").stdout
    assert "finished:stopped" in shown, shown
    twice = running.call("stop", run.path.name)
    assert twice.returncode == 2
    assert "Expected a run in progress" in twice.stderr
    done = running.call("resume", run.path.name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished:completed, round 5 of 5" in done.stdout
    over = running.call("resume", run.path.name)
    assert over.returncode == 2
    assert "is finished" in over.stderr
    rounds = [record["round"] for record in run.metrics() if record["kind"] == "round"]
    assert rounds == [1, 2, 3, 4, 5]
    for name in SILOS:
        with Ledger(running.ledger(name), read_only=True) as ledger:
            rows = sorted(row.round for row in ledger.entries(run=run.run_id))
        assert rows == [1, 2, 3, 4, 5], "seeded: a repeated round is the same release"
    assert "executor ended" not in running.said("alpha"), "the model stays loaded"
    alone = RunFolder.create(load_settings(path), tmp_path / "alone")
    assert federate(alone) == "finished"
    assert_same_model(run, alone)


def test_a_renewed_certificate_serves_after_a_restart(
    running: Federation, experiment: Callable[..., Path]
) -> None:
    before = certificates.serial(running.folder.server_certificate)
    done = running.call("renew", "server", "--days", "90")
    assert done.stdout == f"{running.folder.server_certificate}: restart the server to use it\n"
    assert certificates.serial(running.folder.server_certificate) != before
    running.end("server")
    wait_for(lambda: not running.node_states(), "the server to be gone")
    running.outputs["server"].unlink()
    running.start_server()
    running.wait_until_online(*SILOS)
    done = running.call("submit", str(experiment(seed=62, **{"server.rounds": 1})))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_node_is_taken_out_and_let_in_again(
    running: Federation, experiment: Callable[..., Path], tmp_path: Path
) -> None:
    # beta's folder is on a machine of its own, as it should be.
    running.end("beta")
    machine = tmp_path / "beta"
    shutil.move(running.folder.node("beta"), machine)
    running.begin("beta", "node", "--folder", str(machine))
    running.wait_until_online(*SILOS)
    done = running.call("remove-node", "beta")
    assert "node beta is shut out" in done.stdout, done.stderr
    assert set(running.node_states()) == {"alpha"}
    wait_for(lambda: "supernode ended" in running.said("beta"), "beta to notice")
    wait_for(lambda: "the server refused this node's key" in running.said("beta"), "the refusal")
    path = experiment(seed=63, **{"server.rounds": 1, "data.silo_names": ["alpha"]})
    done = running.call("submit", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waits for alpha" in done.stdout
    # Flower lets a key that was shut out in no more, and the operator is told.
    key, public = machine / "node.key", machine / "node.key.pub"
    with public.open("wb") as file:
        subprocess.run(["ssh-keygen", "-y", "-f", str(key)], stdout=file, check=True)
    done = running.call("add-node", "beta", "--public-key", str(public))
    assert done.returncode == 2, done.stdout
    assert "A key that was shut out is not let in again" in done.stderr
    # A new one, made on beta's machine.
    running.end("beta")
    key.unlink()
    public.unlink()
    words = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)]
    subprocess.run(words, check=True)
    done = running.call("add-node", "beta", "--public-key", str(public))
    assert "node beta is registered" in done.stdout, done.stderr
    assert not (running.folder.node("beta") / "node.key").exists()
    running.begin("beta", "node", "--folder", str(machine))
    running.wait_until_online(*SILOS)
    done = running.call("submit", str(experiment(seed=64, **{"server.rounds": 1})))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 1: 2 of 2 silos" in done.stdout
