"""A registered node that answers what it likes, in a deployment: it is refused by name, and nothing stops."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployments import make_folder
from faulty_nodes import FaultyFederation, absences, check_model, write_experiment

from fedllm.run.folder import RunFolder
from privacy.ledger.ledger import Ledger

pytestmark = pytest.mark.slow
SILOS = ["alpha", "beta", "gamma"]
FORGED = {
    "update.prefix: NaN in one place": "Expected finite numbers for prefix",
    "nothing at all": "Expected the record info",
    "info.silo: another silo": "Expected a reply of silo beta, got 'gamma'",
    "update.prefix: an empty array": "Expected shape",
    "update.prefix: 10^12 in the header": "in its header",
    "metrics.noise-multiplier: 1e-300": "metrics.noise-multiplier, got 1e-300",
    "metrics.steps: 10^15": "metrics.steps, got 1000000000000000",
    "metrics.sampling-rate: two": "metrics.sampling-rate, got 2",
    "a record more": "got 'foreign' as well",
}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, word_files: Path) -> Iterator[FaultyFederation]:
    """A server, alpha and gamma, and beta, which obeys this file."""
    path = tmp_path_factory.mktemp("hostile") / "fedllm"
    running = FaultyFederation(make_folder(path, *SILOS), word_files)
    with running.up():
        yield running


@pytest.fixture
def experiment(tiny_tree: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    def make(**changes: Any) -> Path:
        changes = {"data.silo_names": SILOS, "privacy.epsilon": 1e5} | changes
        return write_experiment(tmp_path / "experiment.toml", tiny_tree(**changes))

    return make


@contextlib.contextmanager
def faults(nodes: FaultyFederation, silo: str, told: dict[str, str]) -> Iterator[None]:
    """Files that tell a node what to do, while this goes on."""
    for name, text in told.items():
        (nodes.faults(silo) / name).write_text(text, encoding="utf-8")
    try:
        yield
    finally:
        for name in told:
            (nodes.faults(silo) / name).unlink()


def given(nodes: FaultyFederation, silo: str) -> Counter[str]:
    """How many tasks of each kind a node's app was given so far."""
    file = nodes.faults(silo) / "tasks"
    return Counter(file.read_text(encoding="utf-8").split() if file.exists() else [])


def test_forged_answers_are_refused_by_name_and_the_run_goes_on(
    nodes: FaultyFederation, experiment: Callable[..., Path], tmp_path: Path
) -> None:
    path = experiment(seed=41, **{"server.rounds": len(FORGED) + 1})
    told = {f"forge-{place}": name for place, name in enumerate(FORGED, start=1)}
    with faults(nodes, "beta", told):
        run = nodes.submit(path)
        assert nodes.wait_until_over(run) == "finished", run.state()["message"]
    absent = absences(run)
    for place, reason in enumerate(FORGED.values(), start=1):
        assert set(absent[place]) == {"beta"}
        assert reason in absent[place]["beta"]
        assert reason in nodes.call("logs", run.path.name).stdout
    assert absent[len(FORGED) + 1] == {}
    report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    shown = str(report["training"]["incidents"])
    assert all(reason.split("'")[0] in shown for reason in FORGED.values())
    check_model(run, path, tmp_path)


def test_an_answer_that_is_never_uploaded_costs_its_silo_the_round_alone(
    nodes: FaultyFederation, experiment: Callable[..., Path]
) -> None:
    path = experiment(seed=42, **{"server.rounds": 2, "server.timeout": 30.0})
    nodes.hold("beta", "after", 2)
    run = nodes.submit(path)
    nodes.wait_until_held("beta", "after", 2)
    with faults(nodes, "beta", {"withhold": ""}):
        nodes.release("beta", "after", 2)
        assert nodes.wait_until_over(run) == "finished", run.state()["message"]
    assert absences(run) == {1: {}, 2: {"beta": "no reply within 30 s"}}


def test_a_node_that_gives_another_silos_name_is_left_out(
    nodes: FaultyFederation, experiment: Callable[..., Path]
) -> None:
    """alpha, whose name it gives, takes part; and no node is needed that lies when it is asked."""
    path = experiment(seed=43, **{"server.rounds": 1})
    with faults(nodes, "beta", {"forge-query": "speak for alpha"}):
        before = given(nodes, "beta")
        run = nodes.submit(path)
        assert nodes.wait_until_over(run) == "finished", run.state()["message"]
        assert given(nodes, "beta") - before == Counter(query=1)
    (told,) = [record for record in run.metrics() if record["kind"] == "replies"]
    (refused,) = told["refused"]
    assert refused["silo"] == "beta"
    assert (
        "the silo beta, which this node's key is registered for, got 'alpha'" in refused["reason"]
    )
    assert run.read_json("schedule.json")["silos"] == ["alpha", "gamma"]


def test_silos_that_are_not_named_get_no_task(
    nodes: FaultyFederation, experiment: Callable[..., Path]
) -> None:
    """``--silos`` and ``resume --without``, with the node of who is left out online all the time."""
    path = experiment(seed=44, **{"server.rounds": 2})
    before = given(nodes, "beta")
    run = nodes.submit(path, "--silos", "alpha,gamma")
    assert nodes.wait_until_over(run) == "finished", run.state()["message"]
    assert given(nodes, "beta") == before
    path = experiment(seed=45, **{"server.rounds": 2})
    nodes.hold("alpha", "after", 2)
    run = nodes.submit(path)
    nodes.wait_until_held("alpha", "after", 2)
    assert nodes.call("stop", run.path.name).returncode == 0
    nodes.release("alpha", "after", 2)
    nodes.wait_until_over(run)
    before = given(nodes, "beta")
    done = nodes.call("resume", run.path.name, "--without", "beta")
    assert done.returncode == 0, done.stdout + done.stderr
    assert given(nodes, "beta") == before
    with Ledger(nodes.ledger("beta"), read_only=True) as ledger:
        assert {entry.round for entry in ledger.entries(run=run.run_id)} <= {1, 2}
    assert set(absences(RunFolder.open(run.path))) == {1, 2}


def test_a_run_in_which_nobody_trained_has_failed(
    nodes: FaultyFederation, experiment: Callable[..., Path]
) -> None:
    path = experiment(seed=46, **{"server.rounds": 1, "server.max_failures": 1.0})
    with faults(nodes, "beta", {"forge-1": "info: missing"}):
        done = nodes.call("submit", str(path), "--silos", "beta")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "finished:failed" in done.stdout
    assert "No silo trained in 1 rounds: beta: Expected the record info" in done.stdout
