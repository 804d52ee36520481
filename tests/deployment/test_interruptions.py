"""What is killed comes back: SuperLink during a run, and the server app, whose run is resumed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from deployments import Federation, wait_for

from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.settings.io import load_settings
from privacy.ledger.ledger import Ledger
from server.deployment.control import connect
from simulations.benchmarks.local_federation import processes_of
from simulations.in_process import federate

pytestmark = pytest.mark.slow


def test_killed_superlink_and_killed_server_app_lose_no_round(
    federation: Federation,
    tiny_tree: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    tree = tiny_tree(**{"server.rounds": 3, "data.silo_names": ["alpha", "beta"], "seed": 11})
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(tomli_w.dumps(tree), encoding="utf-8")
    path = federation.folder.path
    known = set(federation.folder.runs.glob("*"))
    done = federation.call("submit", str(experiment), "--detach")
    assert done.returncode == 0, done.stderr
    place = wait_for(lambda: set(federation.folder.runs.glob("*/state.json")), "a run folder")
    place = next(p.parent for p in place if p.parent not in known)

    def at_round(number: int) -> None:
        wait_for(lambda: RunFolder.open(place).state()["round"] >= number, f"round {number}", 400)

    at_round(1)
    os.kill(processes_of(path, "flower-superlink")[0], signal.SIGKILL)
    at_round(2)
    assert "superlink ended: killed by SIGKILL" in federation.said("server")
    os.kill(processes_of(path, "flwr-serverapp")[0], signal.SIGKILL)
    early = federation.call("resume", place.name)
    assert early.returncode == 2
    assert "Expected a run that is over" in early.stderr

    def failed() -> bool:
        with connect(path) as link:
            return link.runs()[-1].status == "finished:failed"

    wait_for(failed, "Flower to give the server app up")
    done = federation.call("resume", place.name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished:completed, round 3 of 3" in done.stdout
    run = RunFolder.open(place)
    assert [r["round"] for r in run.metrics() if r["kind"] == "round"] == [1, 2, 3]
    for name in ("alpha", "beta"):
        rows = Ledger(federation.folder.node(name) / "ledger.sqlite").entries()
        assert sorted(row.round for row in rows if row.run == run.run_id) == [1, 2, 3], name
    undisturbed = RunFolder.create(load_settings(experiment), tmp_path / "undisturbed")
    assert federate(undisturbed) == "finished"
    first, second = (latest_checkpoint(r.checkpoints_path) for r in (run, undisturbed))
    assert first is not None
    assert second is not None
    for name, value in second.params.items():
        torch.testing.assert_close(first.params[name], value, rtol=0, atol=1e-6)
