"""The parts of a task's time, from what the clocks in the processes wrote."""

from __future__ import annotations

from typing import Any

import pytest

from simulations.benchmark.deployment_cost import FRESH, KEPT, PARTS, ratios, split, summary


def record(what: str, began: float, ended: float, server_round: int = 2, **more: Any) -> Any:
    return {"what": what, "began": began, "ended": ended, "round": server_round, **more}


SERVER = [
    record("send", 100.0, 100.1),
    record("arrival", 119.0, 119.0, silo="beta"),
    record("arrival", 120.0, 120.0, silo="alpha"),
    record("exchange", 100.0, 120.1),
    record("send", 500.0, 500.1, 3),
]
NODE = [
    record("pull", 102.0, 102.1),
    record("pull", 102.3, 102.5),  # 0.5 with what is between the requests
    record("task", 102.6, 102.75),  # taken 0.25 after
    record("spawn", 103.0, 103.1),
    record("open", 107.0, 110.0),
    record("model", 107.5, 109.5),
    record("train", 110.0, 114.0),
    record("app", 107.0, 115.0, silo="alpha", started=103.5, imported=106.5),
    record("push", 116.0, 116.1),
    record("push", 116.2, 116.5),
    record("train", 600.0, 700.0, 3),
]


def test_the_parts_sum_to_the_whole() -> None:
    found = split(SERVER, NODE, "alpha", 2)
    assert sum(found[part] for part in PARTS) == pytest.approx(found["whole"]) == 20.0
    want = {
        "asking": 2.0,
        "transfer": 1.0,
        "taking": 0.25,
        "start": 0.5,
        "imports": 3.0,
        "model": 2.0,
        "data": 1.0,
        "computing": 4.0,
        "app": 1.0,
        "handing": 1.75,  # 0.25 + 0.5 before, 1 after the app
        "collecting": 3.5,
    }
    assert {part: found[part] for part in PARTS} == pytest.approx(want)


def test_a_process_that_was_there_takes_no_start() -> None:
    found = split(SERVER, [r for r in NODE if r["what"] != "spawn"], "alpha", 2)
    assert found["start"] == found["imports"] == 0
    assert found["handing"] == pytest.approx(1.75 + 3.5)


def test_an_answer_that_never_came_is_no_time() -> None:
    with pytest.raises(LookupError, match="times of arrival of alpha in round 3, found none"):
        split(SERVER, NODE, "alpha", 3)


def test_ratios_pair_a_round_with_the_next() -> None:
    rows: list[dict[str, Any]] = [
        dict.fromkeys(PARTS, 0.0)
        | {"silo": "alpha", "round": number, "process": FRESH if number % 2 else KEPT}
        | {"whole": whole, "asking": asking, "computing": whole - asking}
        for number, whole, asking in [
            (2, 4.0, 2.0),
            (3, 8.0, 2.0),
            (4, 40.0, 20.0),
            (5, 80.0, 20.0),
            (6, 1.0, 0.0),
        ]
    ]
    found = ratios(rows)
    assert (found["whole"].median, found["whole"].count) == (pytest.approx(2.0), 2)
    assert found["node"].median == pytest.approx(3.0)
    shown = summary(rows)
    assert (shown[KEPT]["whole"], shown[FRESH]["whole"]) == (4.0, 44.0)
    assert (shown[KEPT]["node"], shown[FRESH]["node"]) == (2.0, 33.0)
