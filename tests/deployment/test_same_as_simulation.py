"""The same experiment and seeds: in deployment, on Flower's simulation engine and in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deployments import Federation
from faulty_nodes import assert_same_model, write_experiment
from whole_runs import run_by_command

from fedllm.run.folder import RunFolder
from fedllm.settings.io import load_settings
from privacy.ledger.ledger import Ledger
from simulations.in_process import federate

pytestmark = pytest.mark.slow
SILOS = ["alpha", "beta"]


def keys(path: Path, run: RunFolder) -> set[tuple[str, int, str]]:
    with Ledger(path, read_only=True) as ledger:
        return {(entry.party, entry.round, entry.key) for entry in ledger.entries(run=run.run_id)}


def test_deployment_and_simulation_give_the_same_prefix_and_the_same_releases(
    federation: Federation, tiny_tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    changes = {"server.rounds": 2, "data.silo_names": SILOS, "privacy.epsilon": 1e5, "seed": 51}
    path = write_experiment(tmp_path / "experiment.toml", tiny_tree(**changes))
    deployed = federation.submit(path)
    assert federation.wait_until_over(deployed) == "finished", deployed.state()["message"]
    simulated = run_by_command(path, tmp_path / "simulated")
    alone = RunFolder.create(load_settings(path), tmp_path / "alone")
    assert federate(alone) == "finished"
    for other in (simulated, alone):
        assert_same_model(deployed, other)
        recorded = set().union(*(keys(federation.ledger(silo), deployed) for silo in SILOS))
        assert recorded == keys(other.ledger_path, other)
