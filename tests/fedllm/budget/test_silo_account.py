"""A silo's account: calibration, budget before the step, rows before the noise, restarts, sharing."""

from __future__ import annotations

import math
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import rdp as dp_rdp
from scipy import stats

from fedllm.budget.account import SiloAccount
from fedllm.budget.release_id import release_key
from fedllm.budget.schedule import evaluation_rounds, sampling_rate
from fedllm.run.folder import ledger_of
from privacy.accountants import make_accountant
from privacy.budget import BudgetExceeded, OutsidePlan
from privacy.events.constructors import discrete_gaussian, dp_sgd, gaussian
from privacy.events.multiset import is_private
from privacy.guarantee import Relation, Unit
from privacy.ledger.ledger import Ledger, LedgerError
from privacy.run_plan import RunPlan

Make = Callable[..., Any]
CALIBRATED = {"privacy.noise_multiplier": None, "privacy.epsilon": 2.0, "server.rounds": 6}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache of calibrations for all tests of this session, and no other."""
    folder = tmp_path_factory.getbasetemp() / "calibrations"
    monkeypatch.setenv("FEDLLM_CACHE", str(folder))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def account(settings: Any, ledger: Ledger, run: str = "run-1", **changes: Any) -> SiloAccount:
    options = {"party": "alpha", "examples": 60, "rounds": settings.server.rounds} | changes
    return SiloAccount(settings, run=run, ledger=ledger, **options)


def spend_all(one: SiloAccount, first: int = 1, label: str = "") -> int:
    """Rounds admitted until the budget refuses, at most 100 more than planned."""
    for server_round in range(first, one.rounds + 100):
        try:
            one.spend_training(server_round, f"train/{server_round}/{label}")
        except BudgetExceeded:
            return server_round - first
    return one.rounds + 100 - first


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_calibrated_run_uses_the_budget_and_not_more(
    accountant: str, tiny_settings: Make, ledger: Ledger
) -> None:
    settings = tiny_settings(**CALIBRATED | {"privacy.accountant": accountant})
    one = account(settings, ledger)
    assert one.sampling_rate == pytest.approx(8 / 60)
    admitted = spend_all(one)
    assert admitted == 6
    events = one.spent()
    assert events == Counter({dp_sgd(8 / 60, one.noise_multiplier, 1): 12})
    pld = make_accountant("pld").epsilon(events, settings.privacy.delta)
    own = make_accountant(accountant).epsilon(events, settings.privacy.delta)
    assert pld <= own <= 2.0
    assert own >= 2.0 * 0.998
    assert one.epsilon() == own


def test_calibration_leaves_room_for_private_evaluation(
    tiny_settings: Make, ledger: Ledger
) -> None:
    settings = tiny_settings(
        **CALIBRATED,
        **{
            "evaluation.clients": "private",
            "evaluation.clients_holdout": 0.2,
            "evaluation.every": 2,
            "evaluation.clients_noise": 10.0,
        },
    )
    one = account(settings, ledger)
    assert evaluation_rounds(settings) == 3
    for server_round in range(1, 7):
        one.spend_training(server_round, f"train/{server_round}")
        if server_round % 2 == 0:
            one.spend_evaluation(server_round, f"evaluate/{server_round}")
    events = one.spent()
    assert events[discrete_gaussian(10 * math.sqrt(2))] == 6
    assert sum(events.values()) == 18
    epsilon = make_accountant("rdp").epsilon(events, 1e-5)
    assert 2.0 * 0.998 <= epsilon <= 2.0
    with pytest.raises(BudgetExceeded):
        one.spend_evaluation(7, "evaluate/7")
    with pytest.raises(BudgetExceeded):
        one.spend_training(7, "train/7")
    assert one.spent() == events


def test_noise_by_hand_stops_before_the_step_that_exceeds(
    tiny_settings: Make, ledger: Ledger
) -> None:
    settings = tiny_settings(**{"privacy.epsilon": 8.0, "server.rounds": 1000})
    one = account(settings, ledger)
    admitted = spend_all(one)
    step = dp_sgd(one.sampling_rate, 0.8, 1)
    judge = make_accountant("rdp")
    assert 1 < admitted < 100
    assert judge.epsilon(Counter({step: 2 * admitted}), 1e-5) <= 8.0
    assert judge.epsilon(Counter({step: 2 * (admitted + 1)}), 1e-5) > 8.0
    assert one.spent() == Counter({step: 2 * admitted})


def test_restart_neither_resets_nor_counts_twice(tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(**{"privacy.epsilon": 8.0, "server.rounds": 1000})
    with Ledger(tmp_path / "whole.sqlite") as ledger:
        whole = spend_all(account(settings, ledger))
    path = tmp_path / "parts.sqlite"
    total = 0
    with Ledger(path) as ledger:
        one = account(settings, ledger)
        for server_round in range(1, 4):
            one.spend_training(server_round, f"train/{server_round}/")
            total += 1
    with Ledger(path) as ledger:
        again = account(settings, ledger)
        assert not again.spend_training(3, "train/3/"), "the same release was counted twice"
        total += spend_all(again, first=4)
    assert total == whole


def test_resumed_run_keeps_its_noise_and_its_plan(tiny_settings: Make, tmp_path: Path) -> None:
    """Also when another run was planned meanwhile: what a run planned counts as a whole from its first
    release on, so that both runs can be finished, in whatever order, and keep to the budget."""
    settings = tiny_settings(**CALIBRATED | {"privacy.run_epsilon": 1.0})
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        first = account(settings, ledger)
        first.spend_training(1, "train/1")
    with Ledger(path) as ledger:
        other = account(settings, ledger, run="run-2")
        other.spend_training(1, "train/1")
        resumed = account(settings, ledger, rounds=50)
        assert resumed.noise_multiplier == first.noise_multiplier
        assert spend_all(resumed, first=2) == 5, "a task with other rounds moves no plan"
        assert spend_all(other, first=2) == 5
        assert keeps_to(ledger, 2.0)


def keeps_to(ledger: Ledger, epsilon: float, delta: float = 1e-5) -> bool:
    """Whether the plans in a ledger keep to a budget: the filter's condition, computed here by Renyi divergences
    of dp_accounting or by normal tails on a grid, from the plans alone."""
    plans = [RunPlan.of_details(row.details) for row in ledger.plans(party="alpha")]
    recorded = [budget for plan in plans for budget in plan.budgets]
    terms = [b.terms for b in recorded if b.terms is not None and b.epsilon == epsilon]
    assert len(set(terms)) == 1, "the filter was chosen again"
    events = [plan.events("server") for plan in plans]
    if terms and terms[0].kind == "renyi":
        rdp = dp_rdp.RdpAccountant(orders=[terms[0].order])
        for plan in events:
            for event, count in plan.items():
                rdp.compose(event, count)
        return bool(rdp.get_epsilon(delta) <= epsilon)
    judge = make_accountant("pld")
    total = 0.0
    for place, plan in enumerate(events[1:], 1):
        floor = terms[0].reserve / place / (place + 1)
        total += least_mu(judge, plan, floor) ** 2
    joint = events[0] + Counter({gaussian(total**-0.5): 1}) if total else events[0]
    return bool(judge.delta(joint, epsilon) <= delta - terms[0].reserve * bool(total))


def least_mu(judge: Any, plan: Counter, floor: float) -> float:
    """A mu that a plan needs at the very least, by a coarse grid of epsilons."""
    grid = np.linspace(0, judge.epsilon(plan, 10 * floor), 12)
    points = [(e, judge.delta(plan, e)) for e in grid]

    def enough(mu: float) -> bool:
        normal = stats.norm.cdf
        return all(
            normal(-e / mu + mu / 2) - math.exp(e) * normal(-e / mu - mu / 2) + floor >= d
            for e, d in points
        )

    low, high = 1e-3, 50.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if enough(middle) else (middle, high)
    return low


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_second_run_on_the_same_data_gets_what_the_filter_leaves(
    accountant: str, tiny_settings: Make, tmp_path: Path
) -> None:
    by = {"privacy.accountant": accountant}
    half = tiny_settings(**CALIBRATED | by)
    more = tiny_settings(**CALIBRATED | by | {"privacy.epsilon": 4.0})
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        first = account(half, ledger)
        assert spend_all(first) == 6
        second = account(more, ledger, run="run-2")
        fresh = account(more, Ledger(tmp_path / "fresh.sqlite"), run="run-2")
        assert second.noise_multiplier > fresh.noise_multiplier * 1.02
        assert second.spent_before() == first.spent()
        assert spend_all(second) == 6
        assert keeps_to(ledger, 4.0)
        assert make_accountant("pld").epsilon(second.spent(), 1e-5) <= 4.0
        with pytest.raises(BudgetExceeded, match=r"^privacy\.epsilon .*other runs have spent"):
            account(half, ledger, run="run-3")
        elsewhere = account(half, ledger, run="run-3", party="beta")
        assert elsewhere.noise_multiplier == first.noise_multiplier, (
            "another silo's data is its own"
        )


def test_units_that_do_not_compose_are_refused(tiny_settings: Make, ledger: Ledger) -> None:
    by_example = account(tiny_settings(), ledger)
    client = tiny_settings(**{"privacy.unit": "client"})
    by_client = account(client, ledger, run="run-2", party="alpha")
    by_client.spend_training(1, "train/1")
    with pytest.raises(ValueError, match="units do not compose"):
        by_example.spend_training(1, "train/1")
    with pytest.raises(ValueError, match="units do not compose"):
        account(tiny_settings(), ledger, run="run-3")
    assert len(ledger.entries()) == 1


@pytest.mark.parametrize("relation", [Relation.ZERO_OUT, Relation.REPLACE_ONE])
@pytest.mark.parametrize("by", ["client", "server"])
def test_client_level_calibration(
    relation: Relation, by: str, tiny_settings: Make, ledger: Ledger
) -> None:
    """One Gaussian mechanism a round; replacing a client moves its update by twice the clip."""
    changes = {"privacy.unit": "client", "privacy.noise_by": by}
    changes |= {"privacy.relation": relation.value, "privacy.epsilon": 8.0}
    settings = tiny_settings(**CALIBRATED | changes)
    one = account(settings, ledger, examples=1)
    assert spend_all(one) == 6
    assert one.spent() == Counter({gaussian(one.noise_multiplier): 6})
    # The definition, without any accountant's view of relations: std over how far the sum moves.
    moves = 2 if relation is Relation.REPLACE_ONE else 1
    mu = 6**0.5 * moves / one.noise_multiplier
    delta = stats.norm.cdf(-8 / mu + mu / 2) - np.exp(8) * stats.norm.cdf(-8 / mu - mu / 2)
    assert 1e-7 < delta <= 1e-5
    server_view = ledger.spent("server")
    assert all(map(is_private, server_view)) == (by == "client")
    assert all(map(is_private, ledger.spent("outsider")))


def test_poisson_sampling_of_clients_is_amplified_with_noise_by_the_server_alone(
    tiny_settings: Make, ledger: Ledger
) -> None:
    changes = {"privacy.unit": "client", "server.sampling": "poisson", "server.fraction": 0.25}
    by_server = account(
        tiny_settings(**changes, **{"privacy.noise_by": "server"}), ledger, examples=1
    )
    by_client = account(tiny_settings(**changes), ledger, examples=1)
    assert by_server.training_events(1) == {dp_sgd(0.25, 0.8, 1): 1}
    assert by_client.training_events(1) == {gaussian(0.8): 1}


def test_without_privacy_the_ledger_says_no_guarantee(tiny_settings: Make, ledger: Ledger) -> None:
    settings = tiny_settings(**{"privacy.mode": "none"})
    one = account(settings, ledger)
    assert one.noise_multiplier == 0
    one.spend_training(1, "train/1")
    (entry,) = ledger.entries()
    assert not is_private(entry.view("server"))
    assert "privacy.mode=none" in str(entry.view("outsider"))
    assert one.epsilon() == float("inf")
    with pytest.raises(BudgetExceeded, match="inf"):
        account(tiny_settings(**CALIBRATED), ledger, run="later")


def test_raw_evaluation_is_recorded_and_training_goes_on(
    tiny_settings: Make, ledger: Ledger
) -> None:
    settings = tiny_settings(
        **CALIBRATED, **{"evaluation.clients": "raw", "evaluation.clients_holdout": 0.2}
    )
    one = account(settings, ledger)
    for server_round in range(1, 7):
        one.spend_training(server_round, f"train/{server_round}")
        one.spend_evaluation(server_round, f"evaluate/{server_round}")
    assert one.epsilon() == float("inf")
    with pytest.raises(BudgetExceeded):
        one.spend_training(7, "train/7")
    with pytest.raises(BudgetExceeded, match="inf"):
        account(tiny_settings(**CALIBRATED), ledger, run="later")


def test_silo_that_never_trains_can_still_evaluate(tiny_settings: Make, ledger: Ledger) -> None:
    settings = tiny_settings(
        **CALIBRATED, **{"evaluation.clients": "private", "evaluation.clients_holdout": 0.2}
    )
    one = account(settings, ledger, rounds=0)
    one.spend_evaluation(6, "evaluate/6")
    with pytest.raises(ValueError, match="noise_multiplier"):
        one.spend_training(1, "train/1")


def test_keys_repeat_only_where_the_noise_does(tiny_settings: Make) -> None:
    seeded, fresh = tiny_settings(), tiny_settings(**{"privacy.randomness": "os"})
    digest = "d" * 64
    assert release_key(seeded, "train", 3, digest) == release_key(seeded, "train", 3, digest)
    others = {
        release_key(seeded, "train", 4, digest),
        release_key(seeded, "evaluate", 3, digest),
        release_key(seeded, "train", 3, "e" * 64),
        release_key(seeded, "train", 3, digest),
    }
    assert len(others) == 4
    assert release_key(fresh, "train", 3, digest) != release_key(fresh, "train", 3, digest)


def test_row_tells_what_is_needed_to_judge_it(tiny_settings: Make, ledger: Ledger) -> None:
    account(tiny_settings(), ledger).spend_training(2, "train/2")
    (entry,) = ledger.entries()
    assert (entry.run, entry.party, entry.unit, entry.round) == ("run-1", "alpha", Unit.EXAMPLE, 2)
    assert entry.details["noise_multiplier"] == 0.8
    assert entry.details["clip"] == 0.5
    assert entry.details["relation"] == "zero-out"
    assert entry.details["randomness"] == "seeded"


def test_sampling_rate(tiny_settings: Make) -> None:
    settings = tiny_settings()
    assert sampling_rate(settings, 80) == 0.1
    assert sampling_rate(settings, 3) == 1.0
    assert sampling_rate(tiny_settings(**{"client.sampling_rate": 0.3}), 3) == 0.3
    with pytest.raises(ValueError, match="at least one training example"):
        sampling_rate(settings, 0)


def test_ledger_path(tiny_settings: Make, tmp_path: Path) -> None:
    assert ledger_of(tiny_settings(), tmp_path) == tmp_path / "ledger.sqlite"
    shared = tiny_settings(**{"privacy.ledger": str(tmp_path / "shared.sqlite")})
    assert ledger_of(shared, tmp_path / "run") == tmp_path / "shared.sqlite"


def _race(settings: Any, path: Path, run: str, start: Any, admitted: Any) -> None:
    with Ledger(path) as ledger:
        one = account(settings, ledger, run=run)
        start.wait()
        for server_round in range(1, 200):
            try:
                one.spend_training(server_round, f"train/{server_round}")
            except BudgetExceeded:
                break
            time.sleep(0.02)
        admitted.put((run, server_round - 1))


def test_processes_that_plan_on_one_ledger_cannot_overspend_together(
    tiny_settings: Make, tmp_path: Path
) -> None:
    """Two runs of one party propose plans that fit alone and not together, at the same time: the later one gets
    what the filter leaves."""
    settings = tiny_settings(**{"privacy.epsilon": 8.0, "server.rounds": 1000})
    with Ledger(tmp_path / "alone.sqlite") as ledger:
        whole = spend_all(account(settings, ledger))
    settings = tiny_settings(**{"privacy.epsilon": 8.0, "server.rounds": whole * 3 // 4})
    path = tmp_path / "shared.sqlite"
    Ledger(path).close()
    context = multiprocessing.get_context("spawn")
    start, admitted = context.Barrier(2), context.Queue()
    runs = [
        context.Process(target=_race, args=(settings, path, f"run-{i}", start, admitted))
        for i in range(2)
    ]
    for process in runs:
        process.start()
    counts = dict(admitted.get(timeout=600) for _ in runs)
    for process in runs:
        process.join(timeout=60)
        assert process.exitcode == 0
    with Ledger(path) as ledger:
        rows = ledger.entries(party="alpha")
        step = dp_sgd(8 / 60, 0.8, 1)
        assert ledger.spent("server") == Counter({step: 2 * len(rows)})
        plans = [RunPlan.of_details(row.details) for row in ledger.plans(party="alpha")]
        assert keeps_to(ledger, 8.0)
    assert sum(counts.values()) == len(rows) == sum(p.events("server")[step] for p in plans) / 2
    assert max(counts.values()) == settings.server.rounds
    assert min(counts.values()) < settings.server.rounds, "no race took place"


def test_two_accounts_that_looked_at_the_same_ledger_cannot_both_take_the_last_step(
    tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a race would need, made certain: the other run spends while this one's budget
    is being asked. It must then wait, and be refused."""
    settings = tiny_settings(**{"privacy.epsilon": 8.0, "server.rounds": 1000})
    path = tmp_path / "shared.sqlite"
    first, second = Ledger(path), Ledger(path)
    one, two = account(settings, first), account(settings, second, run="run-2")
    with Ledger(tmp_path / "alone.sqlite") as ledger:
        alone = spend_all(account(settings, ledger))
    for server_round in range(1, alone):
        one.spend_training(server_round, f"train/{server_round}")
    outcome: list[str] = []

    def rival() -> None:
        try:
            two.spend_training(1, "train/1")
            outcome.append("admitted")
        except BudgetExceeded:
            outcome.append("refused")

    assert one.bounds
    admit, thread = one.book.admit, threading.Thread(target=rival)

    def slowly(*args: Any) -> None:
        admit(*args)
        thread.start()
        thread.join(timeout=1.0)  # time enough to spend, were it possible

    monkeypatch.setattr(one.book, "admit", slowly)
    one.spend_training(alone, f"train/{alone}")
    thread.join(timeout=60)
    assert outcome == ["refused"]
    assert len(first.entries()) == alone
    first.close()
    second.close()


OWN = {
    "alpha": {"epsilon": 1.0, "delta": 1e-6},
    "beta": {"epsilon": 6.0, "sampling_rate": 0.05},
    "gamma": {"batch_size": 4},
}


def test_each_silo_is_calibrated_to_its_own_target_and_rate(
    tiny_settings: Make, ledger: Ledger
) -> None:
    settings = tiny_settings(**CALIBRATED, **{"privacy.silos": OWN})
    expected = {  # epsilon, delta, rate, divisor
        "alpha": (1.0, 1e-6, 8 / 60, 8),
        "beta": (6.0, 1e-5, 0.05, 8),
        "gamma": (2.0, 1e-5, 4 / 60, 4),
        "delta": (2.0, 1e-5, 8 / 60, 8),
    }
    judge = make_accountant("rdp")
    for party, (epsilon, delta, rate, divisor) in expected.items():
        one = account(settings, ledger, party=party)
        assert one.sampling_rate == pytest.approx(rate)
        assert spend_all(one) == 6
        events = ledger.spent("server", party=party)
        assert events == Counter({dp_sgd(one.sampling_rate, one.noise_multiplier, 1): 12})
        assert epsilon * 0.998 <= judge.epsilon(events, delta) <= epsilon
        details = ledger.entries(party=party)[0].details
        recorded = (details["epsilon"], details["delta"], details["batch_size"])
        assert recorded == (epsilon, delta, divisor)
        assert details["sampling_rate"] == one.sampling_rate
        assert details["noise_multiplier"] == one.noise_multiplier
        resumed = account(settings, ledger, party=party)
        assert resumed.noise_multiplier == one.noise_multiplier


def test_run_epsilon_bounds_each_run_and_epsilon_all_of_them(
    tiny_settings: Make, ledger: Ledger
) -> None:
    """epsilon=2.4 in all, 2 a run: the first run gets 2, the second what the filter leaves of 2.4."""
    changes = CALIBRATED | {"privacy.epsilon": 2.4, "privacy.run_epsilon": 2.0}
    judge = make_accountant("rdp")
    one = account(tiny_settings(**changes), ledger)
    alone = account(tiny_settings(**CALIBRATED), ledger, run="elsewhere")
    assert one.noise_multiplier == alone.noise_multiplier, "calibrated to the tighter bound"
    assert spend_all(one) == 6
    assert 2.0 * 0.998 <= judge.epsilon(one.spent(), 1e-5) <= 2.0
    with pytest.raises(OutsidePlan, match="outside of the run's plan"):
        one.spend_training(99, "train/99")
    two = account(tiny_settings(**changes), ledger, run="run-2")
    assert two.noise_multiplier > one.noise_multiplier
    assert spend_all(two) == 6
    assert keeps_to(ledger, 2.4)
    with pytest.raises(OutsidePlan):
        two.spend_training(99, "train/99")
    with pytest.raises(BudgetExceeded, match=r"^privacy\.epsilon \(all runs on the ledger\)"):
        account(tiny_settings(**changes), ledger, run="run-3")
    assert not ledger.entries(run="run-3")
    assert not ledger.plans(run="run-3")


def test_run_epsilon_alone_leaves_the_ledger_unbounded(tiny_settings: Make, ledger: Ledger) -> None:
    changes = CALIBRATED | {"privacy.epsilon": None, "privacy.run_epsilon": 2.0}
    for run in ("a", "b", "c"):
        one = account(tiny_settings(**changes), ledger, run=run)
        assert spend_all(one) == 6
        spent = make_accountant("rdp").epsilon(ledger.spent("server", run=run), 1e-5)
        assert 2.0 * 0.998 <= spent <= 2.0
    assert one.epsilon() > 3.0


def test_evaluations_that_cost_more_than_the_target_are_refused_by_name(
    tiny_settings: Make, ledger: Ledger
) -> None:
    evaluated = {
        "evaluation.clients": "private",
        "evaluation.clients_holdout": 0.2,
        "evaluation.clients_noise": 2.0,
        "evaluation.every": 1,
    }
    own = {"privacy.silos": {"alpha": {"epsilon": 0.5}}, "privacy.epsilon": 20.0}
    settings = tiny_settings(**CALIBRATED | evaluated | own)
    with pytest.raises(ValueError, match=r"privacy\.epsilon of the silo alpha .*clients_noise"):
        account(settings, ledger)
    assert account(settings, ledger, party="beta").noise_multiplier > 0


def test_silo_with_one_example_samples_it_always(tiny_settings: Make, ledger: Ledger) -> None:
    one = account(tiny_settings(**CALIBRATED), ledger, examples=1)
    assert one.sampling_rate == 1.0
    assert one.training_events(1) == {gaussian(one.noise_multiplier): 2}
    assert spend_all(one) == 6
    assert 2.0 * 0.998 <= one.epsilon() <= 2.0


def test_views_of_colluders(tiny_settings: Make, tmp_path: Path) -> None:
    """Local noise protects from any number of them; noise by the server, from none."""
    by_server = {"privacy.unit": "client", "privacy.noise_by": "server"}
    for changes, private in (({}, True), ({"privacy.unit": "client"}, True), (by_server, False)):
        settings = tiny_settings(**changes, **{"privacy.colluding": [1, 3]})
        with Ledger(tmp_path / f"{len(changes)}{private}.sqlite") as ledger:
            one = account(settings, ledger)
            one.spend_training(1, "train/1")
            for adversary in ("server", "colluding:1", "colluding:2", "colluding:3"):
                events = ledger.spent(adversary)
                assert all(map(is_private, events)) is private, (changes, adversary)
                assert private is (events == one.spent())
            assert all(map(is_private, ledger.spent("outsider")))
            with pytest.raises(LedgerError, match="colluding:4"):
                ledger.spent("colluding:4")
