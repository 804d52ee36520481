"""Whether a silo's extract covers what it released: in the run, on its whole ledger, and after its last word."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_runs import NOISE, ROUNDS, SILOS, epsilon, new_run
from vouched_reports import COST, cheaper, report, row, silo_part, why, written
from vouching import Silo, deployed, expect, finished_elsewhere

from fedllm.report.extract.statement import Extract, FigureItem, PlanItem
from fedllm.report.extract.store import read_index, write_index
from fedllm.report.held import FILTER, PLAN
from fedllm.run.folder import RunFolder
from privacy.events.constructors import dp_sgd, no_guarantee
from privacy.events.serialization import event_to_json


def test_an_older_extract_leaves_out_what_the_silo_told(tmp_path: Path) -> None:
    run = finished_elsewhere(new_run(tmp_path, privacy={"colluding": []}), SILOS)
    silos = [Silo(tmp_path / "silos", name) for name in SILOS]
    for silo in silos:
        for round_ in range(1, ROUNDS + 1):
            older = silo.extract(run)
            silo.enter(run, round_, dp_sgd(SILOS[silo.name], NOISE, 1))
        silo.put(run, silo.signed(silo.extract(run)))
    expect(run, silos)
    assert report(run)["guarantee"]["level"] == "guaranteed"
    for events in (
        True,
        False,
    ):  # replayed by who may write to the run folder: its signature is true
        kept = {} if events else {"plan": None, "events": None}
        silo.put(run, silo.signed(older.model_copy(update=kept)))
        assert "than it told the server of with its updates" in why(report(run), "B") or not events


def test_the_last_word_of_a_silo_that_died_may_lag_within_its_plan(tmp_path: Path) -> None:
    """Two of three rounds are in it; the third came with an update. Its plan holds for all."""
    run, (_, b) = deployed(tmp_path)
    extract = b.extract(run)
    lagging = extract.model_copy(update=two_rounds(extract) | {"plan": whole_plan(extract)})
    b.put(run, b.signed(lagging))
    assert "leaves out releases" in why(report(run), "B"), (
        "it answered at the end, and left one out"
    )
    lag(run)
    found = report(run)
    assert found["guarantee"]["level"] == "guaranteed"
    assert found["guarantee"]["epsilon"] == pytest.approx(epsilon(COST)), "of the whole plan"
    b.put(run, b.signed(lagging.model_copy(update={"plan": None})))
    assert "leaves out releases" in why(report(run), "B"), "nothing holds for the third"


def lag(run: RunFolder, told: tuple[tuple[str, int], ...] | None = ()) -> None:
    """B did not answer at the end of the run; ``told`` is what the server had of it, where it is another."""
    index = read_index(run.path)
    kept = index["B"].told if told == () else told
    write_index(run.path, index | {"B": replace(index["B"], final=False, told=kept)})


def two_rounds(extract: Extract) -> dict[str, Any]:
    """The changes that make of an extract one of before the third round."""
    assert extract.events is not None
    (item,) = extract.events
    earlier = item.model_copy(update={"rounds": ((1, 2),)})
    return {"rows_of_run": 2, "events": (earlier,), "account": cheaper(extract, 0.7)}


def whole_plan(extract: Extract) -> PlanItem:
    assert extract.events is not None
    event = extract.events[0].views["server"]
    planned = f'{{"count":{ROUNDS},"event":{event},"kind":"SelfComposed"}}'
    return PlanItem(
        plan=json.dumps({"train": {"server": planned, "outsider": planned}}), budgets="[]"
    )


def holding(extract: Extract, held: FigureItem | None, factor: float = 0.7) -> dict[str, Any]:
    """An account of the rows so far, and what is stated to hold."""
    return {
        name: item.model_copy(update={"held": held})
        for name, item in cheaper(extract, factor).items()
    }


def test_a_lagging_extract_without_an_epsilon_of_its_plan_does_not_count(tmp_path: Path) -> None:
    """What was told is within the plan, but the number is that of the rows at the time of the extract."""
    run, (_, b) = deployed(tmp_path)
    extract = b.extract(run)
    lag(run)
    no_number = FigureItem(accountant=PLAN, epsilon=None, bound=False)
    lagging = extract.model_copy(
        update=two_rounds(extract)
        | {"plan": whole_plan(extract), "account": holding(extract, no_number)}
    )
    b.put(run, b.signed(lagging))
    assert "is of before releases that it told the server of" in why(report(run), "B")
    b.enter(run, 1, dp_sgd(0.5, 1.0, 1), run_id="another")
    shared = b.extract(run)
    lagging = shared.model_copy(
        update=two_rounds(shared)
        | {"plan": whole_plan(extract), "account": holding(shared, no_number)}
    )
    b.put(run, b.signed(lagging))
    assert "is of before releases that it told the server of" in why(report(run), "B")
    assert shared.events is not None
    b.put(run, b.signed(shared.model_copy(update={"plan": whole_plan(extract)})))
    found = report(run)
    assert found["guarantee"]["level"] == "if-fixed", "all that was told is in it"
    total = epsilon(COST | {dp_sgd(0.5, 1.0, 1): 1})
    assert found["guarantee"]["epsilon"] == pytest.approx(total)


def test_a_lagging_budget_is_at_least_what_was_told(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    small, event = dp_sgd(0.01, 5.0, 1), dp_sgd(SILOS["B"], NOISE, 1)
    b.enter(run, 1, small, run_id="another")
    extract = b.extract(run)
    part = epsilon({event: 2, small: 1}) / epsilon(COST | {small: 1})
    lag(run)
    for budget, vouches in ((8.0, True), (epsilon(COST) * 0.9, False)):
        held = FigureItem(accountant=FILTER, epsilon=budget, bound=True)
        changes = two_rounds(extract) | {
            "plan": whole_plan(extract),
            "account": holding(extract, held, part),
        }
        b.put(run, b.signed(extract.model_copy(update=changes)))
        found = report(run)
        if vouches:
            assert found["guarantee"]["epsilon"] == budget
        else:
            assert "less than the" in why(found, "B")


def test_a_lagging_extract_without_events_counts_where_it_can_be_compared(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    lag(run)
    kept = b.extract(run, events=False)
    b.put(run, b.signed(kept))
    assert report(run)["guarantee"]["epsilon"] == epsilon(COST), "it costs no less than was told"
    b.enter(run, 1, dp_sgd(0.5, 1.0, 1), run_id="another")
    shared = b.extract(run, events=False)
    b.put(run, b.signed(shared))
    assert "is of before releases" in why(report(run), "B"), "other runs hide what is missing"
    held = FigureItem(accountant=FILTER, epsilon=9.0, bound=True)
    b.put(run, b.signed(shared.model_copy(update={"account": holding(shared, held)})))
    assert report(run)["guarantee"]["epsilon"] == 9.0
    low = FigureItem(accountant=FILTER, epsilon=0.1, bound=True)
    b.put(run, b.signed(shared.model_copy(update={"account": holding(shared, low, 0.01)})))
    assert "less than the" in why(report(run), "B")


def test_of_a_run_without_an_end_only_a_plan_or_a_budget_counts(tmp_path: Path) -> None:
    """The server was killed: what it had received is not known."""
    run, (_, b) = deployed(tmp_path)
    lag(run, None)
    extract = b.extract(run)
    for changes in ({}, two_rounds(extract), {"events": None}):
        b.put(run, b.signed(extract.model_copy(update=changes)))
        assert "the run has not come to its end at the server" in why(report(run), "B")
    for changes in ({}, two_rounds(extract)):
        b.put(run, b.signed(extract.model_copy(update=changes | {"plan": whole_plan(extract)})))
        assert report(run)["guarantee"]["epsilon"] == pytest.approx(epsilon(COST))


def test_a_raw_release_that_a_lagging_extract_leaves_out_is_found(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    told = (*(read_index(run.path)["B"].told or ()), (event_to_json(no_guarantee("raw")), 1))
    lag(run, told)
    extract = b.extract(run)
    event = extract.events[0].views["server"] if extract.events else ""
    raw = event_to_json(no_guarantee("raw"))
    views = dict.fromkeys(("server", "outsider"), f'{{"events":[{event},{raw}],"kind":"Composed"}}')
    plan = PlanItem(plan=json.dumps({"train": views}), budgets="[]")
    b.put(run, b.signed(extract.model_copy(update={"plan": plan})))
    assert "leaves out releases" in why(report(run), "B")


def test_less_noise_told_than_vouched_for_is_found(tmp_path: Path) -> None:
    run, _ = deployed(tmp_path)
    index = read_index(run.path)
    told = ((event_to_json(dp_sgd(SILOS["B"], NOISE / 2, 1)), ROUNDS),)
    write_index(run.path, index | {"B": replace(index["B"], told=told)})
    assert "states more noise, than it told" in why(report(run), "B")
    told = ((event_to_json(no_guarantee("raw")), 1),)
    write_index(run.path, index | {"B": replace(index["B"], told=told)})
    assert "leaves out releases" in why(report(run), "B")


@pytest.mark.parametrize("rows", [True, False])
def test_noise_that_the_server_adds_is_never_vouched_for(tmp_path: Path, rows: bool) -> None:
    """What the server told is in the outsider's view then; the server itself sees updates without noise."""
    run, _ = deployed(tmp_path, {"A": 0.1})
    central = dp_sgd(SILOS["B"], NOISE, 1)
    silo = Silo(tmp_path / "central", "B")
    if rows:
        views = {"server": no_guarantee("without noise"), "outsider": central}
        for round_ in range(1, ROUNDS + 1):
            silo.enter(run, round_, central, views=views)
    silo.put(run, silo.signed(silo.extract(run)))
    index = read_index(run.path)
    told = ((event_to_json(central), ROUNDS),)
    index["B"] = replace(index["A"], key=silo.key.public, told=told)
    write_index(run.path, index)
    assert "leaves out releases" in why(report(run), "B")


@pytest.mark.parametrize("told", ["none", "no number", "infinite"])
def test_this_run_alone_is_never_stated_as_the_whole_ledger(tmp_path: Path, told: str) -> None:
    """A silo with other runs on its ledger withholds what all cost; the events that it sent are of this run."""
    run, (_, b) = deployed(tmp_path)
    b.enter(run, 1, dp_sgd(0.5, 1.0, 1), run_id="another")
    extract = b.extract(run)
    epsilons = {"no number": None, "infinite": "Infinity"}
    account = {
        name: item.model_copy(
            update={
                "figures": ()
                if told == "none"
                else tuple(f.model_copy(update={"epsilon": epsilons[told]}) for f in item.figures)
            }
        )
        for name, item in extract.account.items()
    }
    b.put(run, b.signed(extract.model_copy(update={"account": account})))
    found = written(run)
    assert found["guarantee"]["level"] == "none"
    assert found["guarantee"]["epsilon"] == "Infinity"
    for adversary in ("server", "outsider"):
        figures = silo_part(found, "B")["adversaries"][adversary]["figures"]
        assert all(figure["epsilon"] in (None, "Infinity") for figure in figures)
    said = "no finite epsilon" if told == "infinite" else "no epsilon of the 2 runs on its ledger"
    assert f"the silo B states {said}" in found["headline"]


def test_a_ledger_that_costs_less_than_a_part_of_it_has_no_number(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    b.enter(run, 1, dp_sgd(0.5, 1.0, 1), run_id="another")
    extract = b.extract(run)
    b.put(run, b.signed(extract.model_copy(update={"account": cheaper(extract, 0.1)})))
    found = report(run)
    assert found["guarantee"]["level"] == "none"
    assert "less for the 2 runs on its ledger than the events of this run" in found["headline"]
    assert row(found, "B")["disagreements"]
