"""Over several runs on one ledger the report states the budget that a filter held, and what it takes for granted else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedllm.report.accounting import Accounts, SiloAccounting, account_silos
from fedllm.report.guarantee import headline
from fedllm.report.held import add_held
from fedllm.silo_account import SiloAccount
from privacy.ledger import Ledger
from privacy.vocabulary import Relation, Unit

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
    with Ledger(path, read_only=True) as ledger:
        entries = ledger.entries()
    terms: dict[str, Any] = {"unit": Unit.EXAMPLE, "relation": relation}
    silos = account_silos(
        entries, run="one", silos=["alpha"], accounts=Accounts(relation, DELTA), **terms
    )
    add_held(silos, path, Unit.EXAMPLE, relation, DELTA)
    return silos[0], headline(silos, delta=DELTA, seeded=False, **terms).sentence


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
