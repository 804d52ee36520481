"""The page of a sweep in a real browser; the checks are those of the report's page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_checks import CONTRAST, DESKTOP, MARKS, PHONE, WIDER, Browser, needs_browser

from simulations.sweep.report import html

pytestmark = needs_browser


def row(arm: str, epsilon: float, mean: float, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "dataset": "sst2",
        "epsilon": epsilon,
        "arm": arm,
        "planned": 3,
        "seeds": [0, 1, 2],
        "summary": {"mean": mean, "spread": 0.012, "error": 0.007},
        "over_seeds": {
            "n": 3, "difference": mean - 0.8, "error": 0.004, "low": mean - 0.82, "high": mean - 0.78,
            "p": 0.04, "p_holm": 0.2,
        },
        "over_examples": {"n": 1000, "p": 0.0004, "p_holm": 0.002},
        "gap": {"difference": 0.03, "error": 0.004},
        "gap_closed": (mean - 0.8) / 0.03,
        "cost": 1.9,
        "no_privacy": False,
        "guarantee": {
            "level": "guaranteed", "epsilon": epsilon - 0.01, "delta": 1e-5, "unit": "example",
            "relation": "zero-out", "adversary": "server", "accountant": "pld", "bound": True,
            "reasons": [],
        },
    }  # fmt: skip
    return found | changes


def content() -> dict[str, Any]:
    none = {"level": "none", "epsilon": float("inf"), "reasons": ["awp.form=batch: <b>raw</b>"]}
    base = {"over_seeds": None, "over_examples": None, "gap": None, "gap_closed": None}
    rows = []
    for epsilon in (3.0, 8.0):
        rows += [
            row("plain DP", epsilon, 0.8, **base),
            row("within a layer, from the batch's raw gradient", epsilon, 0.82, guarantee=none),
            row("all three", epsilon, 0.79 + epsilon / 500),
            row("non-private", epsilon, 0.83, no_privacy=True, guarantee=none, gap_closed=None),
        ]
    cell = {"title": "sst2, all three, epsilon 3, seed 2", "arm": "all three", "status": "failed",
            "message": "OSError: no space", "round": 3, "rounds": 40, "done": False, "metrics": {},
            "run": "cells/" + "long-name-" * 9}  # fmt: skip
    return {
        "name": "shown",
        "file": "shown.toml",
        "made": "2026-01-01T00:00:00+00:00",
        "made_by": "fedllm",
        "metric": "accuracy",
        "baseline": "plain DP",
        "reference": "non-private",
        "arms": list(dict.fromkeys(r["arm"] for r in rows)),
        "datasets": ["sst2"],
        "seeds": [0, 1, 2],
        "comparisons": 6,
        "done": 23,
        "of": 24,
        "table": rows,
        "trials": [cell],
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "results.html"
    path.write_text(html(content()), encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_page_is_whole_legible_and_asks_for_nothing(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width, dark)
    assert browser.complaints() == []
    assert browser.requests() == {page.as_uri()}
    across, limit, wide = browser.script(WIDER)
    assert wide == []
    assert across <= limit
    contrast, where, texts, background = browser.script(CONTRAST)
    assert texts > 100
    assert contrast >= 4.5, where
    assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")


def test_the_figures_are_drawn(browser: Browser, page: Path) -> None:
    browser.open(page)
    found = browser.script(MARKS)
    assert set(found) == {"figure-metric0", "figure-gap0"}
    for figure in found.values():
        assert figure["role"] == "img"
        assert len(figure["label"]) > 100
        assert figure["outside"] == []
        assert figure["font"] >= 8
    assert len(found["figure-metric0"]["marks"]) == 3 + 1, "three private arms, one level line"
    assert len(found["figure-gap0"]["marks"]) == 2 * 2
    assert all(across > 1 for across, *_ in found["figure-gap0"]["marks"])
    assert "all three at epsilon 3: -13 % of 3.00" in found["figure-gap0"]["label"]


def test_an_arm_without_a_guarantee_stands_out(browser: Browser, page: Path) -> None:
    browser.open(page)
    cells = browser.script(
        "return [...document.querySelectorAll('table.sweep tbody tr')].map(r => "
        "[r.querySelector('th').innerText, r.lastElementChild.innerText, "
        "getComputedStyle(r.lastElementChild).color])"
    )
    assert len(cells) == 8
    marked = [cell for cell in cells if "NO GUARANTEE" in cell[1]]
    assert {cell[0] for cell in marked} == {"within a layer, from the batch's raw gradient"}
    assert {cell[2] for cell in marked} == {"rgb(164, 14, 22)"}
    notice = browser.script("return document.querySelector('#broken').innerText")
    assert "<b>raw</b>" in notice, "text of a ledger is text"
    failed = browser.script("return document.querySelector('#unfinished').innerText")
    assert "failed after 3 of 40 rounds: OSError: no space" in failed
