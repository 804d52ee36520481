"""The report of a run whose ledgers are with the silos: what it states, for whom, and on whose word."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import NOISE, ROUNDS, SILOS, Page, epsilon, finished, new_run
from vouched_reports import COST, cheaper, report, row, silo_part, why, written
from vouching import Silo, deployed, expect, finished_elsewhere

from fedllm.report import build
from fedllm.report.extract.statement import (
    text_of,
)
from fedllm.report.extract.store import FOLDER, INDEX, path_of, read_index, write_index
from fedllm.report.guarantee import shown
from privacy.events.constructors import dp_sgd


def test_all_vouch_and_the_report_is_that_of_the_ledgers_themselves(tmp_path: Path) -> None:
    run, silos = deployed(tmp_path)
    found = written(run)
    guarantee = found["guarantee"]
    assert guarantee["level"] == "guaranteed"
    assert guarantee["epsilon"] == epsilon(COST)
    assert found["problems"] == []
    assert f"epsilon = {shown(epsilon(COST))}" in found["headline"]
    assert "On the word of the 2 silos: each vouches for its own ledger" in found["headline"]
    for silo in silos:
        part = row(found, silo.name)
        assert (part["vouches"], part["events"], part["rows"]) == (True, "sent", ROUNDS)
        assert part["key"] == silo.key.public.fingerprint
        assert part["disagreements"] == []
    simulated = build(finished(new_run(tmp_path)))
    again = build(run)
    for part in ("silos", "releases", "privacy_curves", "copies", "epsilon_by_round", "meaning"):
        assert again[part] == simulated[part], part
    words = " ".join(Page((run.path / "report.html").read_text()).words)
    assert "Who vouches for what" in words
    assert "as far as what the silos vouch for is true" in words


def test_a_silo_may_keep_its_events(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    b.put(run, b.signed(b.extract(run, events=False)))
    found = report(run)
    assert found["guarantee"]["level"] == "guaranteed"
    assert found["guarantee"]["epsilon"] == epsilon(COST)
    assert row(found, "B")["events"] == "kept"
    assert found["privacy_curves"] is None, (
        "of the silo with the largest epsilon no events are here"
    )
    assert set(found["epsilon_by_round"]["silos"]) == {"A"}
    assert found["meaning"]["missed"] > 0, "by the one point that is known"
    assert {item["silos"] for item in found["releases"]} == {1}


def test_a_silo_without_an_extract_is_named_and_nothing_is_stated_for_it(tmp_path: Path) -> None:
    run, _ = deployed(tmp_path)
    path_of(run.path / FOLDER, "B").unlink()
    found = written(run)
    assert why(found, "B") == "it sent no extract of its ledger"
    alone = epsilon({dp_sgd(SILOS["A"], NOISE, 1): ROUNDS})
    assert f"For the other 1 alone (A): Guaranteed: epsilon = {shown(alone)}" in found["headline"]


def test_forged_swapped_and_damaged_extracts_do_not_count(tmp_path: Path) -> None:
    run, (a, b) = deployed(tmp_path)
    extract, path = b.extract(run), path_of(run.path / FOLDER, "B")
    whole = path.read_text()
    b.put(run, b.signed(extract, key=a.key))
    assert why(report(run), "B").startswith(
        "its extract is not signed with its registered node key"
    )
    text = text_of(extract)
    b.put(run, replace(b.signed(extract), text=text.replace('"rows_of_run":3', '"rows_of_run":2')))
    assert why(report(run), "B").startswith(
        "its extract is not signed with its registered node key"
    )
    b.put(run, b.signed(extract.model_copy(update={"silo": "A"})))
    assert why(report(run), "B") == "its extract is of another silo, 'A'"
    b.put(run, b.signed(extract.model_copy(update={"run": "yesterday"})))
    assert why(report(run), "B") == "its extract is of another run, 'yesterday'"
    b.put(run, b.signed("[" * 10_000))
    assert why(report(run), "B").startswith("Expected an extract of a ledger")
    for damaged in (whole[: len(whole) // 2], "", "[]", "\x00", " " * 2_000_000):
        path.write_text(damaged)
        assert why(report(run), "B").startswith("Expected ")
    path.write_text(whole)
    assert report(run)["guarantee"]["level"] == "guaranteed"


def test_a_silo_that_states_less_than_its_events_cost_is_found(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    extract = b.extract(run)
    b.put(run, b.signed(extract.model_copy(update={"account": cheaper(extract, 0.5)})))
    found = report(run)
    (first, *_) = row(found, "B")["disagreements"]
    assert first.startswith("epsilon by pld against")
    assert f"{epsilon(COST):.6g}" in first
    assert found["guarantee"]["epsilon"] == epsilon(COST), "the larger one is stated"
    assert any("silo B: epsilon by pld" in text for text in found["problems"])
    # The same lie without the events: less than what came with its updates.
    lie = {"account": cheaper(extract, 0.5), "events": None, "plan": None}
    b.put(run, b.signed(extract.model_copy(update=lie)))
    assert "of the releases that it told the server of" in why(report(run), "B")


def test_a_silo_that_states_more_is_believed_and_the_difference_shown(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    extract = b.extract(run)
    b.put(run, b.signed(extract.model_copy(update={"account": cheaper(extract, 2.0)})))
    found = report(run)
    assert found["guarantee"]["epsilon"] == pytest.approx(2 * epsilon(COST))
    assert row(found, "B")["disagreements"]


def test_other_runs_on_the_ledger_count_on_the_silos_word(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    for round_ in range(1, 3):
        b.enter(run, round_, dp_sgd(0.5, 1.0, 1), run_id="another")
    b.put(run, b.signed(b.extract(run)))
    found = report(run)
    part = row(found, "B")
    assert (part["other_runs"], part["rows_of_other_runs"], part["rows"]) == (1, 2, 5)
    assert part["disagreements"] == []
    total = epsilon(COST | {dp_sgd(0.5, 1.0, 1): 2})
    figures = silo_part(found, "B")["adversaries"]["server"]["figures"]
    assert figures[0]["epsilon"] == pytest.approx(total)
    # No budget held both runs: as in a simulation, that is a condition.
    assert found["guarantee"]["level"] == "if-fixed"
    assert "holds 2 runs, and it states no budget" in found["headline"]


def test_rows_of_other_runs_and_their_runs_are_stated_together(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    extract = b.extract(run)
    for changes in ({"other_runs": 1}, {"rows_of_other_runs": 1}):
        b.put(
            run,
            b.signed(
                extract.model_copy(
                    update={"ledger": extract.ledger.model_copy(update={"rows": 9}), **changes}
                )
            ),
        )
        assert "a row at least of each other run" in why(report(run), "B")


def test_what_a_silo_writes_does_not_reach_the_first_line_as_the_reports_own(
    tmp_path: Path,
) -> None:
    run, (_, b) = deployed(tmp_path)
    extract = b.extract(run)
    account = {
        name: item.model_copy(
            update={
                "figures": tuple(
                    f.model_copy(update={"note": "INJECTED", "bound": True}) for f in item.figures
                )
            }
        )
        for name, item in extract.account.items()
    }
    b.put(run, b.signed(extract.model_copy(update={"account": account, "events": None})))
    found = report(run)
    assert "INJECTED" not in json.dumps(found)
    trusted = {
        f["accountant"]: f["bound"]
        for f in silo_part(found, "B")["adversaries"]["server"]["figures"]
    }
    assert trusted["gdp-clt"] is False
    reasons = {
        name: item.model_copy(update={"reasons": ('it rained\n"Guaranteed" <b>',)})
        for name, item in extract.account.items()
    }
    b.put(run, b.signed(extract.model_copy(update={"account": reasons})))
    found = report(run)
    assert found["guarantee"]["level"] == "none"
    assert "the silo states: \"it rained 'Guaranteed' <b>\"" in found["headline"]


def test_terms_that_are_not_the_reports_do_not_count(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    extract = b.extract(run)
    for changes in ({"unit": "client"}, {"relation": "replace-one"}, {"delta": 1e-3}):
        b.put(run, b.signed(extract.model_copy(update=changes)))
        assert why(report(run), "B").startswith("its extract is stated for unit ")
    b.put(run, b.signed(extract.model_copy(update={"delta": 1e-9})))
    assert report(run)["guarantee"]["level"] == "guaranteed", "a smaller delta is more than asked"


def test_nobody_vouches(tmp_path: Path) -> None:
    run, silos = deployed(tmp_path)
    for silo in silos:
        path_of(run.path / FOLDER, silo.name).unlink()
    found = report(run)
    assert found["guarantee"]["level"] == "unknown"
    assert (
        "no silo vouches for its ledger (A: it sent no extract of its ledger" in found["headline"]
    )
    (run.path / INDEX).write_text("{")
    found = report(run)
    assert found["guarantee"]["level"] == "unknown"
    assert found["headline"].startswith("NO GUARANTEE")


def test_a_silo_that_nobody_expected_to_vouch_is_not_passed_over(tmp_path: Path) -> None:
    run, _ = deployed(tmp_path)
    index = read_index(run.path)
    write_index(run.path, {"A": index["A"]})
    assert why(report(run), "B") == "no extract of its ledger was expected"


def test_a_silo_without_a_registered_key_does_not_vouch(tmp_path: Path) -> None:
    run, _ = deployed(tmp_path)
    index = read_index(run.path)
    write_index(run.path, index | {"B": replace(index["B"], key=None)})
    assert why(report(run), "B") == "no node key is registered for it"


def test_seeded_noise_is_said_by_the_extract(tmp_path: Path) -> None:
    run, (_, b) = deployed(tmp_path)
    b.enter(run, 1, dp_sgd(SILOS["B"], NOISE, 1), randomness="seeded", run_id="another")
    b.put(run, b.signed(b.extract(run, events=False)))
    assert report(run)["guarantee"]["level"] == "conditional"


def test_the_last_word_of_a_silo_that_died_is_said_to_be_that(tmp_path: Path) -> None:
    run, _ = deployed(tmp_path)
    index = read_index(run.path)
    write_index(run.path, index | {"B": replace(index["B"], final=False)})
    found = report(run)
    assert found["guarantee"]["level"] == "guaranteed"
    assert any(
        "What B vouched for last is of before the end of the run" in n for n in found["notes"]
    )


def test_hostile_events_end_in_a_refusal(tmp_path: Path) -> None:
    """Of a registered silo that signs what no mechanism is."""
    run, (_, b) = deployed(tmp_path)
    extract = b.extract(run)
    assert extract.events is not None
    for event in (
        '{"kind":"Gaussian","noise_multiplier":1e-300}',
        '{"kind":"Gaussian","noise_multiplier":1e300}',
        '{"event":{"kind":"Gaussian","noise_multiplier":0.0},"kind":"PoissonSampled","sampling_probability":1e-300}',
    ):
        views = {"server": event, "outsider": event}
        lies = (extract.events[0].model_copy(update={"views": views}),)
        b.put(run, b.signed(extract.model_copy(update={"events": lies})))
        found = report(run)
        guarantee = found["guarantee"]
        stated = guarantee["epsilon"]
        assert guarantee["level"] != "guaranteed" or math.isfinite(stated)
        assert guarantee["level"] != "guaranteed" or stated >= epsilon(COST)


def test_the_others_that_may_collude_are_those_of_the_run(tmp_path: Path) -> None:
    """``privacy.colluding = "others"``: the silos know their number from the tasks, the report from the schedule."""
    run = finished_elsewhere(new_run(tmp_path), SILOS)
    silos = [Silo(tmp_path / "silos", name) for name in SILOS]
    for silo in silos:
        event, weaker = (dp_sgd(SILOS[silo.name], NOISE / part, 1) for part in (1, 2))
        views = {"server": event, "outsider": event, "colluding:1": weaker, "colluding:2": weaker}
        for round_ in range(1, ROUNDS + 1):
            silo.enter(run, round_, event, views=views)
        silo.put(run, silo.signed(silo.extract(run)))
    expect(run, silos)
    dearer = epsilon({dp_sgd(SILOS["B"], NOISE / 2, 1): ROUNDS})
    others = written(run)["guarantee"]["others"]
    assert set(others) == {"outsider", "server", "colluding:1"}
    assert others["colluding:1"] == pytest.approx(dearer)
    assert dearer > epsilon(COST)
    run.write_json("schedule.json", {"silos": [*SILOS, "C"], "rounds": []})
    found = report(run)
    assert set(found["guarantee"]["others"]) == {"outsider", "server", "colluding:2"}
    for damaged in ("[]", '{"silos": 3}', "{"):
        (run.path / "schedule.json").write_text(damaged)
        assert "colluding:1" in report(run)["guarantee"]["others"], "by those of the index"
