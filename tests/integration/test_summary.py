"""The tables at the end of a run."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from fedllm.report.plan_figures import SO_FAR
from fedllm.run.folder import RunFolder
from simulations.cli.training import summary
from simulations.live import LiveView
from simulations.plans.epsilons import planned_epsilons


def test_an_output_that_is_no_terminal_gets_a_line_a_round(
    start_run: Callable[..., RunFolder], in_process: Callable[..., str]
) -> None:
    run, text = start_run("run", **{"server.rounds": 3}), io.StringIO()
    view = LiveView(run.settings(), Console(file=text, width=250))
    assert "starting and loading" in text.getvalue(), "it is silent while the model loads"
    assert in_process(run, callbacks=[view]) == "finished"
    lines = [line.split() for line in text.getvalue().splitlines()]
    found = [line[:6] for line in lines if line[:1] == ["round"] and line[2] == "of"]
    assert found == [["round", str(i), "of", "3", "4", "silos"] for i in (1, 2, 3)]


def test_the_plans_epsilon_stands_beside_that_of_what_was_released(
    start_run: Callable[..., RunFolder], in_process: Callable[..., str]
) -> None:
    run = start_run("run", **{"server.rounds": 2})
    assert in_process(run) == "finished"
    text = io.StringIO()
    summary(run, Console(file=text, width=250))
    printed = text.getvalue()
    assert f"released: {SO_FAR}" in printed
    found = planned_epsilons(run, ["alpha", "nobody"])
    assert found["nobody"] is None
    assert found["alpha"] is not None
    (row,) = [line.replace("│", " ").split() for line in printed.splitlines() if "alpha" in line]
    assert row[4:6] == [f"{found['alpha']:.4f}"] * 2, "all of the plan was released"
