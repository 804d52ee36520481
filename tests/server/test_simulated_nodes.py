"""``flwr run .``: Flower's simulation has one node for each silo of the experiment, or there is no run."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.superlink.grid import InMemoryGrid

from client.app import app as client_app
from fedllm.run.folder import RunFolder
from fedllm.settings.io import to_json
from server import app as server
from server.nodes.simulated import require_a_node_for_each_silo
from server.replies import RunStopped
from simulations.in_process import LocalGrid

ROOT = Path(__file__).resolve().parents[2]


class Simulation(LocalGrid, InMemoryGrid):
    """A grid in this process that passes for that of Flower's simulation."""


def start(nodes: int, settings: Any, folder: Path) -> None:
    config = {"settings": to_json(settings), "run-folder": str(folder)}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)
    server.main(Simulation(client_app, nodes), context)


@pytest.mark.parametrize("nodes", [2, 5])
def test_another_number_of_nodes_than_silos_is_refused(
    nodes: int, tiny_settings: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.require_a_node_for_each_silo, "__defaults__", (0.2,))
    with pytest.raises(RunStopped, match=rf"Expected 4 nodes, .* got {nodes}; .*num-supernodes=4"):
        start(nodes, tiny_settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing was written"


def test_one_node_a_silo_trains_them_all(tiny_settings: Callable[..., Any], tmp_path: Path) -> None:
    start(4, tiny_settings(**{"server.rounds": 1}), tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    assert run.state()["status"] == "finished"
    assert sorted(run.read_json("silos.json")) == ["alpha", "beta", "delta", "gamma"]


def test_nodes_that_come_late_are_waited_for() -> None:
    class Late(LocalGrid):
        looks = 0

        def get_node_ids(self) -> list[int]:
            self.looks += 1
            return list(self.contexts)[: self.looks]

    grid = Late(client_app, 3)
    require_a_node_for_each_silo(grid, 3, wait=5.0)
    assert grid.looks >= 3


def test_what_flower_installs_is_what_is_tested() -> None:
    """`uv sync`, by which Flower installs an app's dependencies, reads [tool.uv] of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    named = project["tool"]["uv"]["constraint-dependencies"]
    assert any(line.startswith("torch==") for line in named)
    assert set(named) <= set(tested)
