"""The parts of a round's time add up to it, and what goes on side by side counts once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulations.benchmarks.deployment_rounds import ROOT, clocked, covered, read_times, split

ASKING = """
import sys
import threading
from types import SimpleNamespace as Plain

from server.nodes.exchange import exchange

grid = Plain(push_messages=lambda messages: ["1"])
task = Plain(metadata=Plain(message_type="train", group_id="7"))
exchange(grid, [task], timeout=0, stop=threading.Event())
assert "simulations.benchmarks.local_federation" not in sys.modules
"""


def record(what: str, began: float, ended: float, **more: float) -> dict[str, object]:
    return {"what": what, "began": began, "ended": ended, "round": 2, **more}


def test_what_goes_on_side_by_side_counts_once() -> None:
    assert covered([]) == 0
    spans = [(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.75), (3.0, 4.0)]
    assert covered([{"began": a, "ended": b} for a, b in spans]) == 5.0


def test_the_parts_of_a_round() -> None:
    server = [record("exchange", 10, 20)]
    silo = [
        record("pull", 12, 13),
        record("pull", 12.5, 13.5),
        record("app", 14, 17, started=9),
        record("train", 15, 16),
        record("push", 17, 17.5),
        record("push", 90, 99) | {"round": 3},
    ]
    late = [*silo[:2], record("app", 14, 17, started=13.5), *silo[3:]]
    parts = {"computing": 1, "loading": 2, "transfer": 2, "waiting": 5, "whole": 10}
    assert split(server, {"alpha": silo})[2] == pytest.approx(parts)
    assert split(server, {"alpha": late})[2] == pytest.approx(
        parts | {"loading": 2.5, "waiting": 4.5}
    )


def test_a_process_with_clocks_writes_its_times(tmp_path: Path) -> None:
    environment = os.environ | clocked(tmp_path)
    subprocess.run([sys.executable, "-c", ASKING], env=environment, cwd=ROOT, check=True)
    (found,) = read_times(tmp_path)
    assert (found["what"], found["round"]) == ("exchange", 7)
    assert found["began"] <= found["ended"]
