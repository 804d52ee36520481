"""Answers that are cut, changed, given twice or again, and a silo whose disk is full."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployments import make_folder, wait_for
from faulty_nodes import (
    FaultyFederation,
    absences,
    check_accounts,
    check_model,
    write_experiment,
)
from wire import Wire

from server.deployment.folder import NODE

pytestmark = pytest.mark.slow
SILOS = ["alpha", "beta"]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A file system of 1 MiB; None where none may be mounted."""
    path = tmp_path_factory.mktemp("small-disk")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)], capture_output=True
    )
    if done.returncode:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture(scope="module")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, word_files: Path, small_disk: Path | None
) -> Iterator[FaultyFederation]:
    """A server; alpha behind a wire and with its ledger on a small disk; beta."""
    path = tmp_path_factory.mktemp("messages") / "fedllm"
    running = FaultyFederation(make_folder(path, *SILOS), word_files)
    running.wire = Wire(running.folder.load().ports.nodes)
    try:
        file = running.folder.node("alpha") / NODE
        ports = (f":{running.wire.target}", f":{running.wire.port}")
        file.write_text(file.read_text(encoding="utf-8").replace(*ports), encoding="utf-8")
        if small_disk is not None:
            running.write_silo("alpha", ledger=str(small_disk / "ledger.sqlite"))
        running.start_server()
        for name in SILOS:
            running.start_node(name)
        running.wait_until_online(*SILOS)
        yield running
    finally:
        running.close()
        running.wire.close()


@pytest.fixture
def experiment(tiny_tree: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    def make(**changes: Any) -> Path:
        changes = {"data.silo_names": SILOS, "privacy.epsilon": 1e5} | changes
        return write_experiment(tmp_path / "experiment.toml", tiny_tree(**changes))

    return make


def test_an_answer_given_twice_or_again_is_in_the_model_once(
    nodes: FaultyFederation, experiment: Callable[..., Path], tmp_path: Path
) -> None:
    path = experiment(seed=31, **{"server.rounds": 2})
    (nodes.faults("beta") / "twice").touch()
    (nodes.faults("alpha") / "repeat").touch()
    run = nodes.submit(path)
    assert nodes.wait_until_over(run) == "finished", run.state()["message"]
    for name, fault in (("beta", "twice"), ("alpha", "repeat")):
        (nodes.faults(name) / fault).unlink()
    absent = absences(run)
    assert absent[1] == {}
    assert set(absent[2]) == {"alpha"}
    assert "Expected 2 as info.round, got 1" in str(absent[2])
    pushed = (nodes.faults("beta") / "pushed").read_text(encoding="utf-8").splitlines()
    assert len(pushed) >= 3, "a query and two rounds"
    rows = check_accounts(run, nodes)
    assert rows["beta"] == {1: 1, 2: 1}
    check_model(run, path, tmp_path)


def test_a_full_disk_stops_the_silo_and_not_the_round(
    nodes: FaultyFederation,
    small_disk: Path | None,
    experiment: Callable[..., Path],
    tmp_path: Path,
) -> None:
    if small_disk is None:
        pytest.skip("no file system may be mounted here (needs root)")
    path = experiment(seed=32, **{"server.rounds": 3})
    for server_round in (2, 3):
        nodes.hold("alpha", "before", server_round)
    run = nodes.submit(path)
    nodes.wait_until_held("alpha", "before", 2)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    nodes.release("alpha", "before", 2)
    nodes.wait_until_held("alpha", "before", 3)
    filler.unlink()
    nodes.release("alpha", "before", 3)
    assert nodes.wait_until_over(run) == "finished", run.state()["message"]
    absent = absences(run)
    assert [set(absent[number]) for number in (1, 2, 3)] == [set(), {"alpha"}, set()]
    assert "Cannot write the ledger (path): " in absent[2]["alpha"]
    log = (nodes.folder.node("alpha") / "logs" / "executor.log").read_text(encoding="utf-8")
    assert f"Cannot write the ledger {small_disk}" in log
    rows = check_accounts(run, nodes)
    assert rows["alpha"] == {1: 1, 3: 1}, "no row, no release"
    check_model(run, path, tmp_path)


def test_a_wire_that_is_cut_and_changes_bytes_changes_no_update(
    nodes: FaultyFederation, experiment: Callable[..., Path], tmp_path: Path
) -> None:
    """TLS notices; the node loses its connection, is started again by its supervisor, and takes part again."""
    path = experiment(seed=33, **{"server.rounds": 4})
    nodes.wait_until_online(*SILOS)
    nodes.hold("beta", "before", 3)
    run = nodes.submit(path)
    nodes.wait_for_round(run, 1)
    wire = nodes.wire
    wire.cut, wire.tamper = 20_000, 0.1
    nodes.wait_until_held("beta", "before", 3)
    lost = "it has lost its connection"
    wait_for(lambda: wire.cuts and wire.changes and lost in nodes.said("alpha"), "the damage")
    wire.cut, wire.tamper = None, 0.0
    # The server may know a lost connection as online for a minute: the node's own log tells.
    log = nodes.folder.node("alpha") / "logs" / "supernode.log"

    def connected() -> bool:
        text = log.read_text(encoding="utf-8")
        ended = max(text.rfind("lost its connection"), text.rfind("Exit Code"))
        return text.rfind("SuperNode ID:") > ended

    wait_for(connected, "alpha to be connected again")
    nodes.wait_until_online("alpha")
    nodes.release("beta", "before", 3)
    assert nodes.wait_until_over(run) == "finished", run.state()["message"]
    absent = absences(run)
    assert absent[1] == absent[4] == {}, "before, and after"
    assert "executor ended" not in nodes.said("alpha"), "the model stays loaded"
    assert all("refused" not in reason for who in absent.values() for reason in who.values())
    check_accounts(run, nodes)
    check_model(run, path, tmp_path)
