"""Records that occur more than once: counted where the data are, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import Page, new_run, trained

from fedllm.data.formats.records import TextDataset
from fedllm.data.repeated_records import repeats, warnings_of_repeats
from fedllm.data.silos import Silo, load_federation
from fedllm.report import write_report
from fedllm.report.build import build
from fedllm.silo.silo import SiloWorker
from privacy.accountants import make_accountant
from privacy.copies import events_of_copies
from privacy.events.constructors import dp_sgd, gaussian
from privacy.events.multiset import multiset

COLUMNS = ("text", "label")
Make = Callable[..., Any]


def silo(name: str, *rows: tuple[str, str]) -> Silo:
    records = [{"text": text, "label": label} for text, label in rows]
    return Silo(name, TextDataset(records, name, COLUMNS), TextDataset([], name, COLUMNS))


def test_a_silo_counts_its_own_copies() -> None:
    one = silo("A", ("Good", "p"), (" good ", "p"), ("good", "n"), ("GOOD", "p"), ("bad", "n"))
    found = repeats(one, COLUMNS)
    assert (found["examples"], found["distinct"]) == (5, 3)
    assert (found["repeated"], found["most_copies"]) == (1, 3)  # another label is another record
    assert "--copies 3" in found["meaning"]
    assert "no record occurs twice" in repeats(silo("B", ("x", "p")), COLUMNS)["meaning"]


def test_a_simulation_is_warned_of_copies_within_and_across_silos() -> None:
    a = silo("A", ("good", "p"), ("good", "p"), ("bad", "n"))
    b = silo("B", ("Good", "p"), ("fine", "p"))
    within, across = warnings_of_repeats([a, b], COLUMNS)
    assert "1 training records occur more than once within a silo, one of them 2 times" in within
    assert "--copies 2" in within
    assert "1 training records are in more than one silo, one of them in 2" in across
    assert "--parties" in across
    assert warnings_of_repeats([silo("A", ("x", "p")), silo("B", ("y", "p"))], COLUMNS) == []


def test_opening_a_silo_writes_the_count_into_its_own_log(
    tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings()
    (first, *_) = load_federation(settings).silos
    log = tmp_path / "rounds.jsonl"
    worker = SiloWorker(settings, first, run="r", ledger=tmp_path / "ledger.sqlite", log=log)
    worker.open()
    worker.open()
    (line,) = (tmp_path / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(line)
    assert record["kind"] == "repeated-records"
    assert record["examples"] == len(worker.train_features)


def test_the_report_says_what_copies_cost(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    found = build(run)["copies"]
    assert found["silo"] == "B"
    events = multiset({dp_sgd(0.05, 1.0, 1): 3})
    pld = make_accountant("pld")
    for cost in found["costs"]:
        expected = pld.epsilon(events_of_copies(events, cost["copies"]), 1e-5)
        assert cost["epsilon"] == pytest.approx(expected)
    assert [cost["copies"] for cost in found["costs"]] == [1, 2, 4]
    one, two, _ = (cost["epsilon"] for cost in found["costs"])
    assert one == pytest.approx(build(run)["guarantee"]["epsilon"])
    assert two > one
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "copies" in page.ids
    assert "4 copies: epsilon" in " ".join(" ".join(page.words).split())


def test_what_copies_cost_is_not_said_where_nothing_is_proven_or_a_silo_is_the_unit(
    tmp_path: Path,
) -> None:
    client = new_run(tmp_path, privacy={"unit": "client"})
    assert build(trained(client, event=gaussian(8.0)))["copies"] is None
    none = new_run(tmp_path, privacy={"mode": "none"})
    assert build(trained(none))["copies"] is None
