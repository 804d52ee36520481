"""Strange events and numbers of one silo: it is refused by name, and the rest of the report stands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_runs import NOISE, ROUNDS
from vouched_reports import cheaper, report, row, why, written
from vouching import deployed

from fedllm.report import accounting
from fedllm.report.accounting import Accounts
from fedllm.report.extract.statement import MOST_DISTINCT, Extract, PlanItem
from fedllm.report.extract.store import read_index, write_index
from fedllm.report.guarantee import round_up
from fedllm.report.sections import copies, silo_curves
from privacy.events.constructors import dp_sgd
from privacy.events.serialization import event_to_json

SAMPLED = (
    '{"event":{"kind":"Gaussian","noise_multiplier":1.0},"kind":"PoissonSampled",'
    '"sampling_probability":1e-300}'
)
HUGE = f'{{"kind":"DiscreteGaussian","sigma":1.0,"sensitivity":{10**30}}}'


def with_event(extract: Extract, event: str) -> Extract:
    """An extract whose rows are all of this event."""
    assert extract.events is not None
    views = {"server": event, "outsider": event}
    item = extract.events[0].model_copy(update={"views": views})
    return extract.model_copy(update={"events": (item,)})


def test_a_rate_below_what_is_ever_sampled_is_refused_by_name(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    extract = b.extract(run)
    nested = f'{{"count":2,"event":{SAMPLED},"kind":"SelfComposed"}}'
    for event in (SAMPLED, nested):
        b.put(run, b.signed(with_event(extract, event)))
        found = written(run)
        assert "Expected sampling rates of 0" in why(found, "B")
        assert "For the other 1 alone (A): Guaranteed" in found["headline"]
    views = {"server": SAMPLED, "outsider": SAMPLED}
    plan = PlanItem(plan=json.dumps({"train": views}), budgets="[]")
    b.put(run, b.signed(extract.model_copy(update={"plan": plan})))
    assert "Expected sampling rates of 0" in why(report(run), "B")


def test_more_mechanisms_than_a_run_has_are_refused(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    extract = b.extract(run)
    assert extract.events is not None
    items = []
    for i in range(MOST_DISTINCT + 1):
        event = event_to_json(dp_sgd(0.01, 1 + i / 1000, 1))
        views = {"server": event, "outsider": event}
        items.append(extract.events[0].model_copy(update={"views": views, "rounds": ((i, i),)}))
    changes = {
        "events": tuple(items),
        "rows_of_run": len(items),
        "ledger": extract.ledger.model_copy(update={"rows": len(items)}),
    }
    b.put(run, b.signed(extract.model_copy(update=changes)))
    assert f"Expected at most {MOST_DISTINCT} different mechanisms" in why(report(run), "B")


def test_a_silo_sends_no_events_that_would_be_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, (_, b) = deployed(tmp_path)
    b.enter(run, ROUNDS + 1, dp_sgd(0.01, NOISE, 1))
    assert b.extract(run).events is not None
    monkeypatch.setattr("fedllm.report.extract.run_rows.MOST_DISTINCT", 1)
    kept = b.extract(run)
    assert (kept.events, kept.plan) == (None, None)
    b.put(run, b.signed(kept))
    assert row(report(run), "B")["vouches"], "its epsilon is stated all the same"


def test_a_number_that_nobody_reads_is_written_all_the_same(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    extract = b.extract(run)
    index = read_index(run.path)
    write_index(run.path, index | {"B": replace(index["B"], told=())})
    dear = extract.model_copy(update={"account": cheaper(extract, 1e299)})
    for changed in (with_event(extract, HUGE), dear):
        b.put(run, b.signed(changed))
        assert "e+" in written(run)["headline"]
    assert round_up(1.00001e30, 3) == "1.001e+30"
    assert round_up(9.9999e29, 3) == "1.000e+30"


def test_a_part_that_cannot_be_computed_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("float division by zero")

    run, _ = deployed(tmp_path)
    whole = report(run)
    monkeypatch.setattr(accounting, "epsilon_by_round", broken)
    monkeypatch.setattr(silo_curves, "privacy_curves", broken)
    monkeypatch.setattr(silo_curves, "least_missed", broken)
    monkeypatch.setattr(copies, "events_of_copies", broken)
    found = written(run)
    for part in ("guarantee", "silos", "vouching", "headline"):
        assert found[part] == whole[part], part
    assert found["epsilon_by_round"]["silos"] == {}
    assert found["privacy_curves"] is None
    assert found["meaning"]["missed"] == 0.0, "nothing is claimed"
    assert {cost["epsilon"] for cost in found["copies"]["costs"]} == {None}
    assert len(found["problems"]) == 5


def test_what_was_told_and_cannot_be_accounted_for_costs_one_voucher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, (_, b) = deployed(tmp_path)
    b.put(run, b.signed(b.extract(run, events=False)))
    strange = dp_sgd(0.5, 7.0, 1)
    index = read_index(run.path)
    told = ((event_to_json(strange), 1),)
    write_index(run.path, index | {"B": replace(index["B"], told=told)})
    asked = Accounts._ask

    def failing(self: Accounts, accountant: Any, name: str, events: Any) -> Any:
        if strange in events:
            raise OverflowError("out of range")
        return asked(self, accountant, name, events)

    monkeypatch.setattr(Accounts, "_ask", failing)
    assert "cannot be accounted for: OverflowError" in why(report(run), "B")
