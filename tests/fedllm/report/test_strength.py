"""The verdict on a guarantee's strength: its words, its colour, and what the terminal warned of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from report_runs import enter, finish_round, new_run, page, trained

from fedllm.report import build, write_report
from fedllm.report.page.render import _tone
from fedllm.report.prose.strength import strength_of
from privacy.events.constructors import dp_sgd, gaussian

NORMAL = NormalDist()


@pytest.mark.parametrize(
    ("epsilon", "published", "level"),
    [
        (0.0, None, "strong"),
        (1.0, 0.001, "strong"),
        (1.001, 0.001, "moderate"),
        (10.0, 0.1, "moderate"),
        (10.1, None, "weak"),
        (20.0, None, "weak"),
        (20.1, None, "none"),
        (1000.0, 1e-9, "none"),
        (0.5, 0.11, "weak"),
        (0.5, 0.999, "weak"),
        (0.5, 1.0, "none"),
        (15.0, 0.5, "weak"),
    ],
)
def test_the_limits(epsilon: float, published: float | None, level: str) -> None:
    assert strength_of(epsilon, published) == level


def one_release(tmp_path: Path, noise: float, **privacy: Any) -> Any:
    """One Gaussian release about one silo, whose best attack is known exactly."""
    run = new_run(tmp_path, privacy={"unit": "client", **privacy})
    enter(run, "A", 1, gaussian(noise))
    finish_round(run, 1, 1)
    run.write_json("silos.json", {"A": {"examples": 66, "left": None}})
    return run


def test_the_attackers_best_rate_is_that_of_the_gaussian(tmp_path: Path) -> None:
    """sigma = 2: the best test with 1 % of false alarms finds Phi(Phi^-1(0.01) + 1/2)."""
    content = build(one_release(tmp_path, 2.0))
    exact = 100 * NORMAL.cdf(NORMAL.inv_cdf(0.01) + 0.5)
    assert content["meaning"]["false_alarms"] == 0.01
    words = content["strength"]["words"]
    found = re.search(r"recognises at most ([0-9.]+)% of those", words)
    assert found is not None
    assert exact <= float(found[1]) <= exact + 0.25
    assert "by guessing, 1%" in words


@pytest.mark.parametrize(
    ("noise", "delta", "level", "tone", "begins"),
    [
        (6.0, 1e-5, "strong", "good", "Guaranteed: epsilon = "),
        (1.2, 1e-5, "moderate", "fair", "Guaranteed: epsilon = "),
        (0.32, 1e-5, "weak", "warn", "WEAK PROTECTION. Guaranteed: epsilon = "),
        (0.03, 1e-5, "none", "bad", "NO MEANINGFUL PROTECTION. Guaranteed: epsilon = "),
    ],
)
def test_colour_and_first_line_follow_the_strength(
    tmp_path: Path, noise: float, delta: float, level: str, tone: str, begins: str
) -> None:
    run = one_release(tmp_path, noise, delta=delta)
    content = build(run)
    assert content["strength"]["level"] == level
    assert content["headline"].startswith(begins)
    found = page(run)
    assert found.words[0] == content["headline"]
    assert found.words[1] == content["strength"]["words"]
    text = (run.path / "report.html").read_text(encoding="utf-8")
    assert f'<p class="guarantee {tone}" id="guarantee">' in text
    assert f'<p class="guarantee {tone}" id="strength">' in text


def test_a_large_epsilon_is_said_to_rule_nothing_out(tmp_path: Path) -> None:
    content = build(one_release(tmp_path, 0.03))
    assert content["guarantee"]["epsilon"] > 500
    assert (
        "may recognise every one that was: the number rules nothing out"
        in content["strength"]["words"]
    )
    assert "misses at least" not in json.dumps(content)
    assert "misses at least" not in write_report(one_release(tmp_path, 0.03)).read_text()


def test_delta_counts_by_the_records_of_the_largest_silo(tmp_path: Path) -> None:
    """delta = 0.1 with 66 records allows to publish 6.6 of them."""
    run = new_run(tmp_path, privacy={"delta": 0.1})
    trained(run, {"A": 0.01}, event=dp_sgd(0.01, 4.0, 1))
    run.write_json("silos.json", {"A": {"examples": 66, "left": None}, "B": {"examples": None}})
    found = build(run)["strength"]
    assert (found["level"], found["records"]) == ("none", 66)
    assert found["published"] == pytest.approx(6.6)
    assert (
        "Delta = 0.1 alone allows to publish 6.6 of the 66 records of the largest silo"
        in found["words"]
    )
    run.write_json("silos.json", {"A": {"examples": None}})
    found = build(run)["strength"]
    assert (found["level"], found["records"], found["published"]) == ("strong", None, None)


def test_without_a_finite_epsilon_there_is_no_verdict(tmp_path: Path) -> None:
    assert build(trained(new_run(tmp_path, privacy={"mode": "none"})))["strength"] is None
    assert build(new_run(tmp_path))["strength"] is None


def test_warnings_of_the_terminal_are_in_the_report_once(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    for text in ("a <b> warning", "another", "a <b> warning"):
        run.append_metrics({"kind": "warning", "round": 0, "message": text})
    path = write_report(run)
    content = json.loads(path.with_name("report.json").read_text(encoding="utf-8"))
    assert content["warnings"] == ["a <b> warning", "another"]
    html = path.read_text(encoding="utf-8")
    assert "<li>a &lt;b&gt; warning</li>" in html
    assert 'id="warnings"' in html
    assert 'id="warnings"' not in write_report(trained(new_run(tmp_path))).read_text("utf-8")


def test_the_central_limit_is_said_to_under_report_only_where_it_does(tmp_path: Path) -> None:
    def trust(run: Any) -> str:
        rows = {row["name"]: row for row in build(run)["accountants"]}
        assert "under-reports" not in rows["pld"]["trust"]
        return str(rows["gdp-clt"]["trust"])

    exact = trust(one_release(tmp_path, 2.0))  # without sampling the formula is exact
    assert "under-reports" not in exact
    assert "may be below the true epsilon or above it" in exact
    few = new_run(tmp_path)
    for round_ in (1, 2, 3):
        enter(few, "A", round_, dp_sgd(0.01, 0.6, 1))
    finish_round(few, 3, 1)
    found = re.search(
        r"; here it under-reports: ([0-9.]+) in place of ([0-9.]+) \(silo A", trust(few)
    )
    assert found is not None
    assert float(found[1]) < 0.99 * float(found[2])


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_strong_guarantee_is_not_green_where_the_server_has_texts(share: float) -> None:
    content = {
        "guarantee": {"level": "guaranteed", "others": {"server": 0.5}},
        "strength": {"level": "strong"},
        "evaluation_data": {"share": share},
    }
    assert _tone(content) == ("warn" if share else "good")
    assert _tone(content | {"strength": {"level": "none"}}) == "bad"
