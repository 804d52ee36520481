"""What the server evaluates on, and what report and terminal say of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedllm.run.folder import RunFolder
from fedllm.settings.io import SettingsError
from simulations.cli.training import summary
from simulations.sweep.plan import load_sweep

ROOT = Path(__file__).resolve().parents[2]


def done(run: RunFolder, federate: Callable[..., str]) -> tuple[dict[str, Any], str, str]:
    """Run it; return report.json, what report.html begins with, and what the terminal says at the end."""
    assert federate(run) == "finished"
    text = io.StringIO()
    summary(run, Console(file=text, width=400))
    page = (run.path / "report.html").read_text(encoding="utf-8")
    begin = page[page.index("<main>") : page.index("<h1>")]
    return (
        json.loads((run.path / "report.json").read_text(encoding="utf-8")),
        begin,
        text.getvalue(),
    )


def test_a_holdout_is_in_the_first_lines(
    start_run: Callable[..., RunFolder], in_process: Callable[..., str]
) -> None:
    run = start_run("run", **{"data.validation": None, "data.holdout": 0.2, "server.rounds": 1})
    report, begin, printed = done(run, in_process)
    sentence = report["evaluation_data"]["sentence"]
    assert (report["evaluation_data"]["source"], report["evaluation_data"]["share"]) == (
        "holdout",
        0.2,
    )
    assert "0.2 of the silos' examples as plain text" in sentence
    assert "of the silos&#39; examples as plain text" in begin
    assert 'class="notice bad" id="server-texts"' in begin
    assert 'class="guarantee good"' not in begin
    assert sentence in printed


def test_a_run_without_texts_of_the_servers_own(
    start_run: Callable[..., RunFolder], in_process: Callable[..., str]
) -> None:
    run = start_run("run", **{"data.validation": None, "server.rounds": 2, "evaluation.every": 1})
    report, begin, printed = done(run, in_process)
    assert report["evaluation_data"]["share"] == 0
    assert "The server has no text to evaluate on, and none of a silo" in begin
    assert "The model was not evaluated" in printed
    kinds = [record["kind"] for record in run.metrics()]
    assert "evaluation" not in kinds
    assert kinds.count("silo") == 8, "the spending is told after each evaluation round"
    assert "Evaluation data" not in [item["title"] for item in report["not_covered"]]


def test_a_sweep_needs_something_to_compare_on(
    tiny_tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    import tomli_w

    tree = tiny_tree()
    del tree["data"]["validation"]
    (tmp_path / "base.toml").write_text(tomli_w.dumps(tree), encoding="utf-8")
    text = 'name = "s"\nbase = "base.toml"\n[arms]\nplain = {}\nother = { seed = 3 }\n'
    (tmp_path / "sweep.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"Expected data\.validation, data\.holdout > 0"):
        load_sweep(tmp_path / "sweep.toml")


@pytest.mark.parametrize("name", ["tweets", "tweets-client-level", "clipping"])
def test_the_demonstrations_ask_for_their_holdout(name: str) -> None:
    text = (ROOT / f"simulations/experiments/{name}.toml").read_text(encoding="utf-8")
    assert "holdout = 0.1" in text
