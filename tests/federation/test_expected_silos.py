"""Waiting for silos by name: who is missing is named; a run that goes on may do so without one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from client.app import app
from fedllm.run_folder import RunFolder
from fedllm.silos import load_federation
from server.callbacks import LogProgress
from server.run import run_experiment
from simulations.in_process import LocalGrid

Start = Callable[..., RunFolder]
SILOS = ["alpha", "beta", "delta", "gamma"]


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
