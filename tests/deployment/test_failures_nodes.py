"""A node that is killed, hangs or is slow: the round goes on without it, and no ledger under-counts."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployments import make_folder
from faulty_nodes import (
    FaultyFederation,
    absences,
    check_accounts,
    check_model,
    write_experiment,
)

from fedllm.run.folder import RunFolder

pytestmark = pytest.mark.slow
SILOS = ["alpha", "beta"]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, word_files: Path) -> Iterator[FaultyFederation]:
    """A server and the nodes alpha and beta, which obey faults."""
    path = tmp_path_factory.mktemp("faulty") / "fedllm"
    running = FaultyFederation(make_folder(path, *SILOS), word_files)
    with running.up():
        yield running


@pytest.fixture
def experiment(tiny_tree: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    def make(**changes: Any) -> Path:
        changes = {
            "server.rounds": 3,
            "data.silo_names": SILOS,
            "privacy.epsilon": 1e5,
        } | changes
        return write_experiment(tmp_path / "experiment.toml", tiny_tree(**changes))

    return make


def finish(
    nodes: FaultyFederation, run: RunFolder, experiment: Path, folder: Path
) -> dict[str, Any]:
    """Wait for the end and check accounts and model; rows of each round in each ledger."""
    assert nodes.wait_until_over(run) == "finished", run.state()["message"]
    rows = check_accounts(run, nodes)
    check_model(run, experiment, folder)
    return rows


def test_a_node_killed_in_a_round_comes_back(
    nodes: FaultyFederation, experiment: Callable[..., Path], tmp_path: Path
) -> None:
    path = experiment(seed=21)
    nodes.hold("alpha", "after", 2)  # its ledger has the round, its answer has not left
    nodes.hold("beta", "before", 3)
    run = nodes.submit(path)
    nodes.wait_until_held("alpha", "after", 2)
    nodes.kill_node("alpha")
    nodes.release("alpha", "after", 2)
    nodes.start_node("alpha")
    nodes.wait_until_held("beta", "before", 3)
    (reason,) = absences(run)[2].values()
    assert "Node Unavailable" in reason
    nodes.release("beta", "before", 3)
    rows = finish(nodes, run, path, tmp_path)
    absent = absences(run)
    assert [set(absent[r]) for r in (1, 2)] == [set(), {"alpha"}]
    assert rows["beta"] == {1: 1, 2: 1, 3: 1}
    assert rows["alpha"][2] == 1, "recorded before the answer was to leave"
    # Back for the next run, at the latest: the server gives the killed connection up first.
    nodes.wait_until_online("alpha")
    again = nodes.submit(experiment(seed=22, **{"server.rounds": 1}))
    assert nodes.wait_until_over(again) == "finished"
    assert absences(again) == {1: {}}


def test_a_node_that_hangs_is_left_out_until_it_goes_on(
    nodes: FaultyFederation, experiment: Callable[..., Path], tmp_path: Path
) -> None:
    path = experiment(seed=23)
    nodes.wait_until_online(*SILOS)
    nodes.hold("alpha", "after", 2)
    nodes.hold("beta", "before", 3)
    run = nodes.submit(path)
    nodes.wait_until_held("alpha", "after", 2)
    nodes.signal_node("alpha", signal.SIGSTOP)
    nodes.wait_until_held("beta", "before", 3)
    assert set(absences(run)[2]) == {"alpha"}
    nodes.release("alpha", "after", 2)  # its answer of round 2 goes out now, too late
    nodes.signal_node("alpha", signal.SIGCONT)
    nodes.wait_until_online("alpha")
    nodes.release("beta", "before", 3)
    finish(nodes, run, path, tmp_path)


def test_a_slow_node_is_not_waited_for_beyond_the_timeout(
    nodes: FaultyFederation, experiment: Callable[..., Path], tmp_path: Path
) -> None:
    path = experiment(seed=24, **{"server.rounds": 4, "server.timeout": 90})
    nodes.wait_until_online(*SILOS)
    nodes.hold("alpha", "after", 2)
    nodes.hold("beta", "before", 3)
    run = nodes.submit(path)
    nodes.wait_until_held("beta", "before", 3)
    assert absences(run)[2] == {"alpha": "no reply within 90 s"}
    nodes.release("alpha", "after", 2)  # its answer of round 2 comes in round 3
    nodes.release("beta", "before", 3)
    rows = finish(nodes, run, path, tmp_path)
    assert rows["alpha"][2] == 1
    assert "alpha" not in absences(run)[4]
