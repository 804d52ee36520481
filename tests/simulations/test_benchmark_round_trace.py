"""The trace of a round: that it counts, and what it counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from simulations.benchmarks.round_trace import (
    Call,
    calls_of_features_off,
    event_builds,
    figures,
    summary,
    trace,
)


def test_a_round_enters_files_and_each_silo_has_a_task(tmp_path: Path) -> None:
    calls = trace(tmp_path)
    assert sys.getprofile() is None
    found = summary(calls)
    assert found["silos"] == 4
    for part in ("round", "task"):
        one = found[part]
        assert one["calls"] > one["across_files"] > one["files"] > 10
        assert one["depth"] > 5
    assert found["round"]["calls"] > 4 * found["task"]["calls"] * 0.8
    assert (
        found["events_built_per_silo"] == 0
    )  # they are built in the first round, and this is the second
    assert found["off"]["calls"] == sum(n for name, n in found["off"].items() if name != "calls")
    assert found["settings"] > 0
    files = {call.file for call in calls}
    assert {file.split("/")[0] for file in files} == {"privacy", "fedllm", "client", "server"}
    assert any(call.function.endswith("configure_train") for call in calls)
    assert any(call.function.endswith("aggregate_train") for call in calls)


def test_figures_of_a_few_calls() -> None:
    calls = [
        Call("server/a.py", "A.configure_train", "server/run.py", 3, None),
        Call("fedllm/training/dp_sgd.py", "DpSgd._noisy_events", "server/a.py", 4, 1),
        Call("fedllm/budget/account.py", "SiloAccount.training_events", None, 5, 1),
        Call("fedllm/codec/base.py", "f", "fedllm/codec/base.py", 7, 1),
    ]
    one = figures(calls)
    assert (one.files, one.calls, one.across_files, one.depth) == (4, 4, 2, 5)
    assert calls_of_features_off(calls)["codec"] == 1
    assert event_builds(calls) == 1
    assert event_builds([Call("f.py", "ClientUpdate.events", None, 1, 1)]) == 1
    with pytest.raises(ValueError, match="got none"):
        figures([])
