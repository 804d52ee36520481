"""A run's plan at a silo: durable with its first release, and nothing outside of it afterwards."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedllm.budget.account import SiloAccount
from fedllm.budget.accounts import spend_together
from fedllm.budget.local_policy import LocalPolicy
from fedllm.budget.silo_plan import ATTEMPTS, StalePlan, recorded_anew
from privacy.budget import BudgetExceeded, OutsidePlan
from privacy.events.constructors import dp_sgd, gaussian, no_guarantee
from privacy.events.views import same_for_all
from privacy.guarantee import Unit
from privacy.ledger.ledger import Ledger, LedgerEntry
from privacy.ledger.storage import LedgerError
from privacy.run_plan import RunPlan, commitments, outside

Make = Callable[..., Any]
PLANNED = {
    "privacy.epsilon": 50.0,
    "privacy.noise_multiplier": 1.5,
    "server.rounds": 3,
    "evaluation.clients": "private",
    "evaluation.clients_holdout": 0.2,
    "evaluation.every": 3,
    "evaluation.clients_noise": 10.0,
    "privacy.randomness": "os",
}
STEP = dp_sgd(8 / 60, 1.5, 1)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def account(settings: Any, ledger: Ledger, run: str = "run", **changes: Any) -> SiloAccount:
    options = {"party": "alpha", "examples": 60, "rounds": settings.server.rounds} | changes
    return SiloAccount(settings, run=run, ledger=ledger, **options)


def plan_of(ledger: Ledger, run: str = "run") -> RunPlan:
    (row,) = ledger.plans(party="alpha", run=run)
    return RunPlan.of_details(row.details)


def test_the_plan_is_there_with_the_first_release_and_is_the_whole_run(
    tiny_settings: Make, ledger: Ledger
) -> None:
    one = account(tiny_settings(**PLANNED), ledger)
    assert ledger.head()[0] == 0, "a plan that was never begun costs nothing"
    one.spend_training(1, "train/1")
    purposes = plan_of(ledger).purposes("server")
    assert purposes == {
        "train": Counter({STEP: 6}),
        "evaluate": one.evaluation_events(),
    }
    assert [row.id for row in ledger.plans()] == [1]
    assert [row.id for row in ledger.entries()] == [2]
    (bound,) = plan_of(ledger).budgets
    assert (bound.setting, bound.epsilon, bound.delta) == ("privacy.epsilon", 50.0, 1e-5)
    assert bound.terms == one.bounds[0].budget.terms(plan_of(ledger).events("server"))
    one.spend_training(2, "train/2")
    assert len(ledger.plans()) == 1
    assert ledger.spent("server") == Counter({STEP: 4}), "a plan has no cost of its own"
    assert ledger.verify().ok


OTHERS = {
    "more rounds": {},
    "another batch size": {"client.batch_size": 9},
    "a smaller one": {"client.batch_size": 7},
    "less noise": {"privacy.noise_multiplier": 1.4999},
    "more steps": {"client.local_steps": 3},
}


@pytest.mark.parametrize("asked", OTHERS)
def test_a_task_outside_of_the_plan_is_refused_and_records_nothing(
    asked: str, tiny_settings: Make, ledger: Ledger
) -> None:
    settings = tiny_settings(**PLANNED)
    first = account(settings, ledger)
    for server_round in (1, 2):
        first.spend_training(server_round, f"train/{server_round}")
    head = ledger.head()
    second = account(tiny_settings(**PLANNED | OTHERS[asked]), ledger, rounds=1000)
    if asked in ("less noise",):
        second.noise_multiplier = (
            1.4999  # whatever the settings say, a resumed account has the plan's
        )
    if asked == "more rounds":
        second.spend_training(3, "train/3")
        head = ledger.head()
    with pytest.raises(OutsidePlan, match="outside of the run's plan"):
        second.spend_training(4, "train/4")
    assert ledger.head() == head


def test_evaluations_statistics_and_scores_that_were_not_planned_are_refused(
    tiny_settings: Make, ledger: Ledger
) -> None:
    one = account(tiny_settings(**PLANNED), ledger)
    one.spend_training(1, "train/1")
    one.spend_evaluation(1, "evaluate/1")
    head = ledger.head()
    with pytest.raises(OutsidePlan, match="Purpose evaluate"):
        one.spend_evaluation(2, "evaluate/2")
    codec = {"codec.name": "linear", "codec.prior_source": "private", "codec.prior": "coordinate"}
    with pytest.raises(OutsidePlan, match="Purpose statistics"):
        account(tiny_settings(**PLANNED | codec), ledger).spend_statistics("statistics/0")
    scores = {"layers.form": "private", "layers.keep": 1, "layers.search": "one-shot"}
    with pytest.raises(OutsidePlan, match="Purpose layer-scores"):
        account(tiny_settings(**PLANNED | scores), ledger).spend_scores(0, "scores/0")
    assert ledger.head() == head


@pytest.mark.parametrize("bounded", [True, False])
def test_a_release_of_a_run_that_plans_none_is_refused_at_once(
    bounded: bool, tiny_settings: Make, ledger: Ledger
) -> None:
    """A server that plans no round and asks for one: the plan was proposed again for ever."""
    changes: dict[str, Any] = {"evaluation.clients": "off", "evaluation.clients_holdout": 0.0}
    changes |= {} if bounded else {"privacy.epsilon": None}
    one = account(tiny_settings(**PLANNED | changes), ledger, rounds=0)
    with pytest.raises(OutsidePlan, match="the run run plans no release of alpha with a guarantee"):
        one.spend_training(1, "train/1")
    with pytest.raises(OutsidePlan, match="plans no release"):
        spend_together_one(one)
    assert ledger.head()[0] == 0


def spend_together_one(one: SiloAccount) -> None:
    for error in spend_together([one], 1, "train/1").values():
        raise error


def test_a_ledger_that_never_holds_still_is_an_error(ledger: Ledger) -> None:
    tries = 0

    def record() -> bool:
        nonlocal tries
        tries += 1
        raise StalePlan

    with pytest.raises(LedgerError, match=r"ledger.sqlite to hold still .* changed 100 times"):
        recorded_anew(record, ledger)
    assert tries == ATTEMPTS


def test_more_noise_than_planned_takes_the_place_of_what_was_planned(
    tiny_settings: Make, ledger: Ledger
) -> None:
    one = account(tiny_settings(**PLANNED), ledger)
    one.spend_training(1, "train/1")
    one.noise_multiplier = 2.0
    one.spend_training(2, "train/2")
    one.spend_training(3, "train/3")
    with pytest.raises(OutsidePlan):
        one.spend_training(4, "train/4")


def test_what_has_no_guarantee_on_purpose_needs_no_plan(
    tiny_settings: Make, ledger: Ledger
) -> None:
    bare = account(tiny_settings(**{"privacy.mode": "none"}), ledger)
    for server_round in range(1, 9):
        bare.spend_training(server_round, f"train/{server_round}")
    assert not ledger.plans()
    raw = account(
        tiny_settings(**PLANNED | {"evaluation.clients": "raw"}), ledger, party="beta", rounds=3
    )
    raw.spend_training(1, "train/1")
    for number in range(9):
        raw.spend_evaluation(1, f"evaluate/{number}")


def test_a_refused_plan_leaves_no_row(tiny_settings: Make, ledger: Ledger) -> None:
    strict = tiny_settings(**PLANNED | {"privacy.epsilon": 0.001})
    with pytest.raises((BudgetExceeded, ValueError)):
        account(strict, ledger).spend_training(1, "train/1")
    assert ledger.head()[0] == 0


def test_noise_by_hand_plans_as_many_rounds_as_the_budget_has_room_for(
    tiny_settings: Make, ledger: Ledger
) -> None:
    changes = {"privacy.epsilon": 4.0, "server.rounds": 1000, "evaluation.clients": "off"}
    one = account(tiny_settings(**PLANNED | changes), ledger)
    one.spend_training(1, "train/1")
    planned = plan_of(ledger).events("server")
    budget = one.bounds[0].budget
    assert 2 <= planned[STEP] < 2000
    budget.admit([planned])
    with pytest.raises(BudgetExceeded):
        budget.admit([planned + Counter({STEP: 2})])


def _killed(settings: Any, path: Path, after: str) -> None:
    """Spend the first round and be gone at a point of the transaction."""
    with Ledger(path) as ledger:
        one = account(settings, ledger)
        if after == "asked":
            book = one.book
            admit = book.admit
            book.admit = lambda *given: (admit(*given), os._exit(9))  # type: ignore[method-assign,return-value]
            one.proposal = lambda: SiloAccount.proposal(_fresh(one))  # type: ignore[method-assign]
        one.spend_training(1, "train/1")
        os._exit(9)


def _fresh(one: SiloAccount) -> SiloAccount:
    """The same account with a book of its own, which asks without being killed."""
    return account(one.settings, one.ledger)


@pytest.mark.parametrize("after", ["asked", "recorded"])
def test_killed_around_the_first_release_the_plan_is_there_with_it_or_neither_is(
    after: str, tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(**PLANNED)
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    process = multiprocessing.get_context("spawn").Process(
        target=_killed, args=(settings, path, after)
    )
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 9
    with Ledger(path) as ledger:
        there = after == "recorded"
        assert (len(ledger.plans()), len(ledger.entries())) == (there, there)
        resumed = account(settings, ledger, rounds=1000 if there else 3)
        for number in range(3 - there):
            resumed.spend_training(number + 1, f"again/{number}")
        with pytest.raises(OutsidePlan):
            resumed.spend_training(3, "one more")


def test_a_plan_that_was_proposed_before_another_run_began_is_proposed_again(
    tiny_settings: Make, ledger: Ledger
) -> None:
    """Else its row would tell of a filter that was chosen after itself, as if it had been the first."""
    settings = tiny_settings(**PLANNED | {"privacy.epsilon": 9.0, "privacy.accountant": "pld"})
    one = account(settings, ledger, run="one")
    two = account(settings.model_copy(), ledger, run="two", rounds=1)
    early = two.proposal()
    assert early is not None
    one.spend_training(1, "train/1")
    proposals = iter([early])
    real = two.proposal
    two.proposal = lambda: next(proposals, None) or real()  # type: ignore[method-assign]
    two.spend_training(1, "train/1")
    (first,), (second,) = plan_of(ledger, "one").budgets, plan_of(ledger, "two").budgets
    assert first.terms == second.terms != early.plan.budgets[0].terms


def test_runs_of_an_old_ledger_count_together_as_the_first_plan(
    tiny_settings: Make, ledger: Ledger
) -> None:
    for run, noise in (("old-1", 3.0), ("old-2", 5.0)):
        views = same_for_all(gaussian(noise))
        ledger.append(LedgerEntry(run, "alpha", Unit.EXAMPLE, "train", 1, "train/1", views))
    settings = tiny_settings(**PLANNED | {"privacy.epsilon": 9.0, "privacy.accountant": "pld"})
    one = account(settings, ledger)
    one.spend_training(1, "train/1")
    found = commitments(ledger, "server", "alpha", Unit.EXAMPLE)
    assert [c.run for c in found] == ["old-1, old-2", "run"]
    assert found[0].planned == Counter({gaussian(3.0): 1, gaussian(5.0): 1})
    (bound,) = plan_of(ledger).budgets
    assert bound.terms == one.bounds[0].budget.terms(found[0].planned)
    # An old run that goes on gets a plan of its own, which holds what it had released.
    old = account(settings, ledger, run="old-2")
    with pytest.raises(OutsidePlan):
        old.spend_training(2, "train/2")
    raw = same_for_all(no_guarantee("old"))
    ledger.append(LedgerEntry("late", "alpha", Unit.EXAMPLE, "train", 1, "train/1", raw))
    assert [c.run for c in commitments(ledger, "server", "alpha", Unit.EXAMPLE)][-1] == "late"
    with pytest.raises(BudgetExceeded, match="inf"):
        one.spend_training(2, "train/2")


def test_a_silo_that_lowers_its_own_budget_is_obeyed_in_the_middle_of_a_run(
    tiny_settings: Make, ledger: Ledger
) -> None:
    settings = tiny_settings(**PLANNED)
    account(settings, ledger, own=LocalPolicy(20.0, 1e-5)).spend_training(1, "train/1")
    lower = account(settings, ledger, own=LocalPolicy(1.0, 1e-5))
    with pytest.raises(BudgetExceeded, match=r"budget\.epsilon of the silo config"):
        lower.spend_training(2, "train/2")


def test_outside_is_a_matching() -> None:
    """Each release needs a planned one of its own with at most as much noise."""

    def plan(*noises: float) -> Counter:
        return Counter(dp_sgd(0.1, noise, 1) for noise in noises)

    assert outside(plan(1.0, 2.0), plan(2.0, 1.0)) is None
    assert outside(plan(1.0, 2.0), plan(3.0, 1.5)) is None
    assert outside(plan(1.0, 2.0), plan(1.5, 1.5)) == dp_sgd(0.1, 1.5, 1)
    assert outside(plan(1.0), plan(2.0, 2.0)) == dp_sgd(0.1, 2.0, 1)
    assert outside(plan(1.0), Counter({gaussian(1.0): 1})) == gaussian(1.0)
    assert outside(plan(), Counter({no_guarantee("x"): 5})) is None


def test_spare_rounds_are_planned_paid_for_and_then_there_for_repeated_rounds(
    tiny_settings: Make, ledger: Ledger
) -> None:
    settings = tiny_settings(**PLANNED | {"privacy.spare_rounds": 2})
    one = account(settings, ledger)
    for place, server_round in enumerate((1, 2, 2, 3, 3)):
        one.spend_training(server_round, f"train/{server_round}/{place}")
    for place in range(3):
        one.spend_evaluation(3, f"evaluate/3/{place}")
    (whole,) = [plan_of(ledger).events("server")]
    assert whole[STEP] == 2 * (3 + 2)
    assert ledger.spent("server") == whole
    with pytest.raises(OutsidePlan):
        one.spend_training(3, "train/3/more")
    with pytest.raises(OutsidePlan):
        one.spend_evaluation(3, "evaluate/3/more")


def test_calibrated_noise_pays_for_spare_rounds(tiny_settings: Make, tmp_path: Path) -> None:
    calibrated = PLANNED | {"privacy.noise_multiplier": None, "privacy.epsilon": 3.0}
    noise = []
    for spare in (0, 5):
        with Ledger(tmp_path / f"{spare}.sqlite") as opened:
            one = account(tiny_settings(**calibrated | {"privacy.spare_rounds": spare}), opened)
            noise.append(one.noise_multiplier)
            assert one.bounds[0].budget.cost(one.planned()) <= 3.0
    assert noise[1] > 1.05 * noise[0]
