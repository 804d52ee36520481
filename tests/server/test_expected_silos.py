"""Waiting for silos by name: who is missing is named; a run that goes on may do so without one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from whole_runs import poison

from client.app import app
from fedllm.data.silos import load_federation
from fedllm.report.build import build
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from server.monitoring import LogProgress
from server.nodes.discovery import find_silos
from server.replies import RunStopped
from server.run import run_experiment
from simulations.benchmarks.support import tiny
from simulations.in_process import LocalGrid
from simulations.runner import succeeded

Start = Callable[..., RunFolder]
RAW = {
    "evaluation.clients": "raw",
    "evaluation.every": 1,
    "evaluation.clients_holdout": 0.2,
}
SILOS = ["alpha", "beta", "delta", "gamma"]
PLACES = list(tiny.SILOS)  # a node for each, in the order of the data


def train(run: RunFolder, silos: list[str], nodes: int = 4, callbacks: Any = ()) -> str:
    return run_experiment(
        LocalGrid(app, nodes),
        run,
        expected_silos=silos,
        callbacks=callbacks,
        evaluation_threads=1,
    )


def test_who_is_missing_is_named(start_run: Start) -> None:
    run = start_run("run", **{"server.wait_for_clients": 0.3})
    assert train(run, [*SILOS, "epsilon", "zeta"]) == "failed"
    assert "missing: epsilon, zeta" in run.state()["message"]
    assert run.state()["round"] == 0
    assert train(run, SILOS) == "finished"


def test_nobody_came(start_run: Start) -> None:
    run = start_run("run", **{"server.wait_for_clients": 0.3})
    assert train(run, ["alpha", "beta"], nodes=0) == "failed"
    assert "found 0 nodes; missing: alpha, beta" in run.state()["message"]


def test_a_run_goes_on_without_a_silo_that_is_gone(start_run: Start) -> None:
    run = start_run("run", **{"server.rounds": 3})
    stop = threading.Event()

    class StopAfterOne:
        def record(self, record: Any) -> None:
            if record["kind"] == "round":
                stop.set()

        def close(self) -> None:
            pass

    run_experiment(
        LocalGrid(app, 4), run, stop=stop, expected_silos=SILOS, callbacks=[StopAfterOne()]
    )
    assert run.state()["round"] == 1
    grid = LocalGrid(app, 4)
    *there, gone = [silo.name for silo in load_federation(run.settings()).silos]
    del grid.contexts[list(grid.contexts)[-1]]
    assert gone not in there
    status = run_experiment(grid, run, expected_silos=there, evaluation_threads=1)
    assert status == "finished"
    replied = [r["replied"] for r in run.metrics() if r["kind"] == "round"]
    assert replied == [4, 3, 3]


def asked(grid: LocalGrid) -> dict[str, set[str]]:
    """Who was sent what: names of silos by the kind of message, as the grid goes on."""
    found: dict[str, set[str]] = {}
    place = dict(zip(grid.contexts, PLACES, strict=True))

    def watch(task: Message, reply: Message) -> Message:
        found.setdefault(task.metadata.message_type, set()).add(place[task.metadata.dst_node_id])
        return reply

    grid.tamper = watch
    return found


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "simulated"])
def test_who_is_not_named_gets_no_task_though_there_first(
    registered: bool, start_run: Start
) -> None:
    """alpha and beta are there before gamma, which is named and comes late."""
    run = start_run("run", **{"server.rounds": 2, "server.wait_for_clients": 15.0, **RAW})
    grid = LocalGrid(app, 4, names=PLACES if registered else ())
    seen = asked(grid)
    late = list(grid.contexts)[PLACES.index("gamma")]
    context = grid.contexts.pop(late)
    threading.Timer(0.4, lambda: grid.contexts.setdefault(late, context)).start()
    assert run_experiment(grid, run, expected_silos=["gamma", "delta"]) == "finished"
    assert seen["train"] == seen["evaluate"] == {"gamma", "delta"}
    if registered:  # in a simulation the nodes say themselves who they are, so all are asked that
        assert seen["query"] == {"gamma", "delta"}
    assert run.read_json("schedule.json")["silos"] == ["delta", "gamma"]


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "simulated"])
def test_a_run_resumed_without_a_silo_sends_it_nothing_though_it_is_there(
    registered: bool, start_run: Start
) -> None:
    run = start_run("run", **{"server.rounds": 3})
    stop = threading.Event()
    names = PLACES if registered else ()

    class StopAfterOne:
        def record(self, record: Any) -> None:
            if record["kind"] == "round":
                stop.set()

        def close(self) -> None:
            pass

    grid = LocalGrid(app, 4, names=names)
    run_experiment(grid, run, stop=stop, expected_silos=SILOS[:3], callbacks=[StopAfterOne()])
    assert run.state()["round"] == 1
    grid = LocalGrid(app, 4, names=names)
    seen = asked(grid)
    assert run_experiment(grid, run, expected_silos=["alpha", "delta"]) == "finished"
    assert seen["train"] == {"alpha", "delta"}
    grid = LocalGrid(app, 4, names=names)
    seen = asked(grid)
    run.set_state(status="interrupted")
    assert run_experiment(grid, run, expected_silos=SILOS) == "finished"
    assert "train" not in seen, "all rounds are over"


def test_a_silo_that_a_run_was_not_begun_with_gets_no_task(start_run: Start) -> None:
    run = start_run("run", **{"server.rounds": 2, **RAW})
    run.write_json("schedule.json", {"silos": SILOS[:3], "rounds": [SILOS[:3]] * 2})
    grid = LocalGrid(app, 4, names=PLACES)
    seen = asked(grid)
    assert run_experiment(grid, run, expected_silos=SILOS) == "finished"
    assert seen["train"] == seen["evaluate"] == set(SILOS[:3])


@pytest.mark.parametrize("claimed", ["alpha", "gamma", "nobody", ""])
def test_a_node_that_speaks_for_another_silo_is_refused_and_the_run_goes_on(
    claimed: str, start_run: Start
) -> None:
    """beta's key is registered for beta, whatever its node says; who it speaks for is not touched."""
    run = start_run("run", **{"server.rounds": 1})
    grid = LocalGrid(app, 4, names=PLACES)
    beta = list(grid.contexts)[1]

    def speak(task: Message, reply: Message) -> Message:
        if task.metadata.dst_node_id == beta:
            info: Any = reply.content["info"]
            info["silo"] = claimed
        return reply

    grid.tamper = speak
    assert run_experiment(grid, run, expected_silos=SILOS) == "finished"
    (record,) = [r for r in run.metrics() if r["kind"] == "round"]
    assert record["replied"] == 3
    (told,) = [r for r in run.metrics() if r["kind"] == "replies"]
    (refused,) = told["refused"]
    assert refused["silo"] == "beta"
    wanted = f"registered for, got '{claimed}'" if claimed else "the name of a silo as info.silo"
    assert wanted in refused["reason"]
    incidents = build(run)["training"]["incidents"]
    assert any(i["silo"] == "beta" and wanted in i["reason"] for i in incidents)


def test_nodes_without_a_registered_name_speak_for_nobody_beside_registered_ones(
    start_run: Start,
) -> None:
    settings = start_run("run", **{"server.wait_for_clients": 0.3}).settings()
    grid = LocalGrid(app, 4, names=["alpha", "beta", "", "delta"])
    found = find_silos(grid, settings, threading.Event(), None, wanted=SILOS[:3])
    assert sorted(found.nodes) == SILOS[:3]
    assert found.keys == {name: f"key of {name}".encode() for name in SILOS[:3]}
    grid = LocalGrid(app, 4, names=["alpha", "beta", "delta", "delta"])
    with pytest.raises(RunStopped, match="missing: delta"):
        find_silos(grid, settings, threading.Event(), None, wanted=SILOS[:3])


@pytest.mark.parametrize("how", ["failed", "refused", "left"])
def test_a_run_in_which_nobody_trained_fails_and_keeps_what_there_is(
    how: str, start_run: Start, tmp_path: Path
) -> None:
    run = start_run("run", **{"server.rounds": 2, "server.max_failures": 1.0})

    def refuse(task: Message, reply: Message) -> Message:
        if task.metadata.message_type != "train":
            return reply
        info: Any = reply.content["info"]
        if how == "refused":
            info["round"] = 99
        else:
            info["status"], info["reason"] = how, "no more of it"
        return reply

    grid = LocalGrid(app, 4, refuse)
    assert run_experiment(grid, run, expected_nodes=4) == "failed"
    assert not succeeded(run.state()["status"])
    message = run.state()["message"]
    assert message.startswith("No silo trained in ")
    for silo in SILOS:
        assert silo in message
    assert ("info.round, got 99" if how == "refused" else "no more of it") in message
    assert latest_checkpoint(run.checkpoints_path) is not None
    assert (run.path / "report.html").is_file()
    assert (run.path / "silos.json").is_file()


BY_SERVER = {
    "privacy.unit": "client",
    "privacy.noise_by": "server",
    "server.max_update_norm": 1e4,
}


@pytest.mark.parametrize("changes", [{}, BY_SERVER], ids=["noise by the silos", "by the server"])
def test_a_run_in_which_every_update_was_refused_has_trained_nobody(
    changes: dict[str, Any], start_run: Start
) -> None:
    """The silos have spent, and a trusted server adds its noise to a sum of none; no update is in the model."""
    run = start_run("run", **changes, **{"server.rounds": 2, "server.max_failures": 1.0})

    def lengthen(task: Message, reply: Message) -> Message:
        if task.metadata.message_type != "train":
            return reply
        return poison(reply, lambda u: {n: torch.full_like(v, 10.0) for n, v in u.items()})

    for _ in range(2):  # again: a resume
        assert run_experiment(LocalGrid(app, 4, lengthen), run, expected_nodes=4) == "failed"
        message = run.state()["message"]
        assert message.startswith("No silo trained in 2 rounds")
        assert all(f"{silo}: Expected an update of norm at most" in message for silo in SILOS)
        checkpoint = latest_checkpoint(run.checkpoints_path)
        assert checkpoint is not None
        assert checkpoint.meta["spending"]["mechanism"]


@pytest.mark.parametrize("changes", [{}, BY_SERVER], ids=["noise by the silos", "by the server"])
def test_a_resumed_run_knows_that_it_trained(changes: dict[str, Any], start_run: Start) -> None:
    """From its checkpoint: a log never decides."""
    run = start_run("run", **changes, **{"server.rounds": 1})
    assert train(run, SILOS) == "finished"
    (run.path / "metrics.jsonl").unlink()
    assert train(RunFolder.open(run.path), SILOS) == "finished"


def test_progress_is_logged_with_who_failed_and_why(
    start_run: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fedllm"):
        train(start_run("run", **{"server.rounds": 1}), SILOS, callbacks=[LogProgress()])
    text = caplog.text
    assert "silos: alpha, beta, delta, gamma; rounds: 1" in text
    assert "round 1: 4 of 4 silos" in text
    assert "accuracy" in text
    assert "finished after round 1" in text
    caplog.clear()
    record = {"kind": "round", "round": 2, "replied": 1, "refused": [], "left": []}
    record["failed"] = [{"silo": "beta", "reason": "no reply within 3 s"}]
    with caplog.at_level(logging.INFO, logger="fedllm"):
        LogProgress().record(record)
    assert "round 2: 1 of 2 silos" in caplog.text
    assert "beta failed: no reply within 3 s" in caplog.text
