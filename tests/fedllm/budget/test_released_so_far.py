"""Commands that print the epsilon of what was released call it that, and name the plan's epsilon beside it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accounting_commands import call, call_json
from rich.console import Console

from fedllm.budget.account import SiloAccount
from fedllm.report.guarantee import shown
from fedllm.report.plan_figures import SO_FAR, plan_epsilons, plans_text
from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd
from privacy.guarantee import SERVER, Relation, Unit
from privacy.ledger.ledger import Ledger, LedgerEntry
from simulations.live import LiveView

Make = Callable[..., Any]
DELTA = 1e-5


@pytest.fixture
def stopped(tiny_settings: Make, tmp_path: Path) -> Path:
    """A ledger of a run of three rounds that stopped after one."""
    settings = tiny_settings(**{"privacy.epsilon": None, "privacy.noise_multiplier": 2.0})
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        one = SiloAccount(settings, run="one", party="alpha", examples=60, rounds=3, ledger=ledger)
        one.spend_training(1, "train/1")
    return path


def planned(path: Path) -> float:
    with Ledger(path, read_only=True) as ledger:
        found = plan_epsilons(
            ledger,
            "alpha",
            unit=Unit.EXAMPLE,
            relation=Relation.ZERO_OUT,
            adversary=SERVER,
            delta=DELTA,
        )
    value = found["one"]
    assert value is not None
    return value


def test_the_plans_epsilon_is_that_of_all_its_rounds(stopped: Path) -> None:
    with Ledger(stopped, read_only=True) as ledger:
        ((event, count),) = ledger.spent("server", party="alpha").items()
    assert planned(stopped) == pytest.approx(
        make_accountant("pld").epsilon({event: 3 * count}, DELTA), rel=1e-12
    )


def test_account_names_what_its_figures_are(stopped: Path) -> None:
    found = call_json("account", ledger=stopped, delta=DELTA)
    assert found["meaning"] == SO_FAR
    assert found["plans"] == {"alpha": {"one": planned(stopped)}}
    assert found["pld"]["epsilon"] < planned(stopped)
    printed = " ".join(call("account", ledger=stopped, delta=DELTA).stdout.split())
    assert (
        f"These figures cover everything {SO_FAR}; the run's plan, one: {shown(planned(stopped))}"
        in printed
    )


def test_account_of_several_parties_has_a_column_of_plans(stopped: Path) -> None:
    with Ledger(stopped) as ledger:
        event = dp_sgd(0.1, 2.0, 1)
        views = {"server": event, "outsider": event}
        details = {"relation": "zero-out"}
        ledger.append(LedgerEntry("one", "beta", Unit.EXAMPLE, "train", 1, "t", views, details))
    printed = " ".join(
        call("account", ledger=stopped, delta=DELTA).stdout.replace("│", " ").split()
    )
    assert f"one: {shown(planned(stopped))}" in printed
    assert "no plan" in printed


def test_show_lists_the_plans(stopped: Path) -> None:
    printed = " ".join(call("ledger", "show", stopped).stdout.replace("│", " ").split())
    assert "1 rows of" in printed
    assert "1 plans: each was fixed before its run's first release" in printed
    assert "6 x " in printed, "three rounds of two steps"
    found = call_json("ledger", "show", stopped)
    assert found["rows"] == 1
    (plan,) = found["plans"]
    assert (plan["id"], plan["run"], plan["party"]) == (1, "one", "alpha")
    assert plan["plan"]["train"]["server"]["count"] == 6
    assert plan["budgets"] == []


def test_the_live_view_says_what_its_epsilon_is(tiny_settings: Make) -> None:
    console = Console(file=io.StringIO(), width=300)
    view = LiveView(tiny_settings(), console)
    view.sizes, view.epsilon = {"alpha": 60}, {"alpha": 1.5}
    console.print(view.render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"epsilon: {SO_FAR}" in text
    assert "released so far  " in text


def test_text_of_many_plans_is_short() -> None:
    assert plans_text({}) == ""
    assert plans_text({f"r{i}": float(i) for i in range(9)}) == (
        "the runs' plans, r6: 6.000, r7: 7.000, r8: 8.000, 6 earlier ones"
    )
