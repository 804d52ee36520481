"""Over several runs on one ledger the report states the budget that a filter held, and what it takes for granted else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from report_runs import finish_round, new_run, trained

from fedllm.budget.account import SiloAccount
from fedllm.report import build
from fedllm.report.accounting import Accounts, SiloAccounting, account_silos
from fedllm.report.guarantee import Headline, headline, shown
from fedllm.report.held import add_held
from fedllm.report.page.render import _tone, render
from privacy.guarantee import Relation, Unit
from privacy.ledger.ledger import Ledger

Make = Callable[..., Any]
DELTA = 1e-5


def spent(
    settings: Any, path: Path, runs: tuple[str, ...], rounds: tuple[int, ...] = (1, 2)
) -> None:
    """Two rounds are planned; those of ``rounds`` are released, each once more with another key where it is named twice."""
    with Ledger(path) as ledger:
        for run in runs:
            one = SiloAccount(
                settings, run=run, party="alpha", examples=60, rounds=2, ledger=ledger
            )
            for place, server_round in enumerate(rounds):
                one.spend_training(server_round, f"train/{server_round}/{place}")


def stated(path: Path, relation: Relation) -> tuple[SiloAccounting, str]:
    silo, found = levelled(path, relation)
    return silo, found.sentence


def levelled(
    path: Path, relation: Relation, seeded: bool = False, others: tuple[SiloAccounting, ...] = ()
) -> tuple[SiloAccounting, Headline]:
    with Ledger(path, read_only=True) as ledger:
        entries = ledger.entries()
    terms: dict[str, Any] = {"unit": Unit.EXAMPLE, "relation": relation}
    silos = account_silos(
        entries, run="one", silos=["alpha"], accounts=Accounts(relation, DELTA), **terms
    )
    add_held(silos, path, Unit.EXAMPLE, relation, DELTA)
    return silos[0], headline([*silos, *others], delta=DELTA, seeded=seeded, **terms)


def test_one_run_is_stated_by_what_it_costs(tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(**{"privacy.noise_multiplier": 2.0, "privacy.epsilon": 8.0})
    path = tmp_path / "ledger.sqlite"
    spent(settings, path, ("one",))
    silo, sentence = stated(path, Relation(settings.privacy.relation))
    assert silo.held == {}
    assert silo.stated("server") == silo.headline("server")
    assert "PLD accountant, an upper bound" in sentence
    assert "filter" not in sentence


def test_several_runs_are_stated_by_the_budget_that_was_held(
    tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(**{"privacy.noise_multiplier": 2.0, "privacy.epsilon": 8.0})
    path = tmp_path / "ledger.sqlite"
    spent(settings, path, ("one", "two"))
    silo, sentence = stated(path, Relation(settings.privacy.relation))
    assert silo.headline("server").epsilon_or_inf < 8.0
    assert silo.stated("server").epsilon == 8.0
    assert "epsilon = 8.000" in sentence
    assert "privacy filter held over the 2 runs" in sentence
    assert "Had all runs been fixed beforehand: epsilon = " in sentence


def test_without_a_budget_over_the_runs_the_condition_is_in_the_statement(
    tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(**{"privacy.noise_multiplier": 2.0, "privacy.epsilon": None})
    path = tmp_path / "ledger.sqlite"
    spent(settings, path, ("one", "two"))
    silo, sentence = stated(path, Relation(settings.privacy.relation))
    assert silo.stated("server").epsilon == silo.headline("server").epsilon
    assert "CONDITION: the ledger holds 2 runs and no budget" in sentence


def test_a_run_that_stops_early_is_stated_by_its_plan(tiny_settings: Make, tmp_path: Path) -> None:
    """Whoever stops a run when its output is telling has not bought a smaller epsilon."""
    settings = tiny_settings(**{"privacy.noise_multiplier": 2.0, "privacy.epsilon": 8.0})
    whole, part = tmp_path / "whole.sqlite", tmp_path / "part.sqlite"
    spent(settings, whole, ("one",))
    spent(settings, part, ("one",), rounds=(1,))
    planned = stated(whole, Relation(settings.privacy.relation))[0].headline("server").epsilon
    silo, sentence = stated(part, Relation(settings.privacy.relation))
    assert silo.stated("server").epsilon == planned
    assert silo.headline("server").epsilon_or_inf < silo.stated("server").epsilon_or_inf
    assert "of the run's plan, which was fixed before its first release" in sentence


def test_releases_beyond_the_plan_without_a_budget_make_the_statement_conditional(
    tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(**{"privacy.noise_multiplier": 2.0, "privacy.epsilon": None})
    path = tmp_path / "ledger.sqlite"
    spent(settings, path, ("one",), rounds=(1, 2, 2))
    silo, sentence = stated(path, Relation(settings.privacy.relation))
    assert silo.stated("server").epsilon == silo.headline("server").epsilon
    assert "CONDITION: no budget was set" in sentence


BEYOND = {"two runs without a filter": (("one", "two"), (1, 2)), "beyond": (("one",), (1, 2, 2))}


@pytest.mark.parametrize("case", BEYOND)
def test_what_holds_under_a_condition_alone_is_not_called_guaranteed(
    tiny_settings: Make, tmp_path: Path, case: str
) -> None:
    settings = tiny_settings(**{"privacy.noise_multiplier": 2.0, "privacy.epsilon": None})
    relation, path = Relation(settings.privacy.relation), tmp_path / "ledger.sqlite"
    runs, rounds = BEYOND[case]
    spent(settings, path, runs, rounds)
    silo, found = levelled(path, relation)
    assert found.level == "if-fixed"
    assert found.sentence.startswith("Guaranteed ONLY UNDER A CONDITION: ")
    assert _tone({"guarantee": asdict(found), "evaluation_data": None}) == "warn"
    assert found.reasons == (silo.held["server"].note,)
    _, seeded = levelled(path, relation, seeded=True)
    assert seeded.level == "conditional"
    assert "CONDITION: " in seeded.sentence


def test_the_condition_of_any_silo_is_stated(tiny_settings: Make, tmp_path: Path) -> None:
    """The largest epsilon is another silo's, which has no condition."""
    settings = tiny_settings(**{"privacy.noise_multiplier": 2.0, "privacy.epsilon": None})
    relation = Relation(settings.privacy.relation)
    larger, path = tmp_path / "larger.sqlite", tmp_path / "ledger.sqlite"
    strong = tiny_settings(**{"privacy.noise_multiplier": 1.0, "privacy.epsilon": None})
    spent(strong, larger, ("one",))
    spent(settings, path, ("one",), (1, 2, 2))
    other, alone = levelled(larger, relation)
    assert alone.level == "guaranteed"
    silo, found = levelled(path, relation, others=(other,))
    assert found.epsilon == alone.epsilon > silo.stated("server").epsilon_or_inf
    assert found.level == "if-fixed"
    assert "CONDITION of other silos: no budget was set" in found.sentence


def test_the_page_is_as_careful_as_its_first_line(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path, privacy={"randomness": "os"}))
    with Ledger(run.ledger_path) as ledger:
        row = ledger.entries()[0]
        other = dataclasses.replace(row, run="another", id=None, time=None, hash=None)
        ledger.append(other)
    content = build(run)
    assert content["guarantee"]["level"] == "if-fixed"
    page = render(content, "0" * 64)
    assert '<p class="guarantee warn"' in page
    assert "<dt>epsilon, conditional</dt>" in page
    assert "where what was released was fixed beforehand" in page


def test_plain_words_and_curves_are_of_what_holds(tmp_path: Path) -> None:
    """What was released of a plan would miss more tests, and its curve lies lower, than what is guaranteed."""
    privacy = {"randomness": "os", "epsilon": 8.0, "noise_multiplier": 2.0}
    run = new_run(tmp_path, privacy=privacy)
    spent(run.settings(), run.ledger_path, (run.run_id,), rounds=(1,))
    finish_round(run, 1, 1)
    content = build(run)
    guarantee = content["guarantee"]
    assert guarantee["accountant"] == "plan"
    (silo,) = content["silos"]
    found = silo["adversaries"]["server"]
    assert found["held"]["epsilon"] == guarantee["epsilon"] > found["headline"]["epsilon"]
    page = " ".join(render(content, "0" * 64).split())
    assert f"<small>by plan {shown(guarantee['epsilon'])}</small>" in page
    assert "so far: a guarantee only if the stopping point did not depend on the outputs" in page
    assert "Epsilon of what was released by the end of each round (a guarantee only if" in page
    assert content["privacy_curves"] is None
    missed = content["meaning"]["missed"]
    epsilon, delta = guarantee["epsilon"], guarantee["delta"]
    line = max(1 - delta - math.exp(epsilon) * 0.01, math.exp(-epsilon) * (1 - delta - 0.01))
    assert missed == pytest.approx(line, rel=1e-12)
