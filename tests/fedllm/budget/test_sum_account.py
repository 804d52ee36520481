"""A silo's account in a sum: common noise, views of each adversary, terms that stay, the silo's own policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedllm.budget.account import SiloAccount
from fedllm.budget.limits import protected_from
from fedllm.budget.local_policy import LimitRefused, LocalPolicy
from fedllm.budget.sums.terms import SumTerms
from privacy.accountants import make_accountant
from privacy.budget import BudgetExceeded, OutsidePlan
from privacy.events.constructors import dp_sgd
from privacy.guarantee import Unit
from privacy.ledger.ledger import Ledger, LedgerEntry

Make = Callable[..., Any]
SUM = {
    "privacy.noise_by": "sum",
    "privacy.noise_multiplier": None,
    "privacy.epsilon": 2.0,
    "server.rounds": 4,
    "client.local_steps": 1,
    "privacy.colluding": [1, 3],
}
SILOS, DIMENSION = 8, 1000


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path_factory.getbasetemp() / "calibrations"))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def account(settings: Any, ledger: Ledger, run: str = "run-1", **changes: Any) -> SiloAccount:
    options = {"party": "alpha", "examples": 60, "rounds": settings.server.rounds} | changes
    return SiloAccount(settings, run=run, ledger=ledger, **options)


def joined(one: SiloAccount, factor: float = 1.0, **changes: Any) -> SiloAccount:
    terms = SumTerms(SILOS, DIMENSION, one.noise_multiplier * factor)
    one.join_sum(replace(terms, **changes))
    return one


def spend_all(one: SiloAccount) -> None:
    for server_round in range(1, one.rounds + 1):
        assert one.spend_training(server_round, f"train/{server_round}")


def epsilon(ledger: Ledger, adversary: str) -> float:
    events = ledger.spent(adversary, party="alpha", unit=Unit.EXAMPLE)
    return float(make_accountant("pld").epsilon(events, 1e-5))


@pytest.mark.parametrize(("t", "m"), [(0, 0), (1, 1)])
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_the_budget_is_used_up_against_the_server_that_learns_sums(
    accountant: str, t: int, m: int, tiny_settings: Make, ledger: Ledger
) -> None:
    settings = tiny_settings(
        **SUM | {"secure.drop_outs": t, "secure.colluding": m, "privacy.accountant": accountant}
    )
    who = "sum-only:1" if m else "sum-only"
    assert protected_from(settings) == who
    one = joined(account(settings, ledger))
    spend_all(one)
    with pytest.raises(OutsidePlan):
        one.spend_training(5, "train/5")
    found = {
        name: epsilon(ledger, name)
        for name in ("outsider", "sum-only", "sum-only:1", "sum-only:3", "server", "colluding:1", "colluding:3")
    }  # fmt: skip
    own = make_accountant(accountant).epsilon(
        ledger.spent(who, party="alpha", unit=Unit.EXAMPLE), 1e-5
    )
    assert 1.9 < own <= 2.0
    assert found[who] <= own
    assert found["outsider"] == found["sum-only"] < found["sum-only:1"] < found["sum-only:3"]
    assert found["server"] == found["colluding:1"] == found["colluding:3"] > found["sum-only:3"]
    # what protects from who sees the message is a share: the noise over the root of the honest ones
    alone = dp_sgd(8 / 60, one.noise_multiplier / math.sqrt(SILOS - t - m), 4)
    assert found["server"] == pytest.approx(make_accountant("pld").epsilon({alone: 1}, 1e-5), rel=0.03)  # fmt: skip


def test_a_common_noise_is_never_below_the_silo_s_own(tiny_settings: Make, ledger: Ledger) -> None:
    settings = tiny_settings(**SUM)
    one = account(settings, ledger)
    own = one.noise_multiplier
    for factor in (0.999999, 0.5, math.nan, 0.0):
        with pytest.raises(LimitRefused, match="Expected a common noise multiplier >="):
            joined(one, factor)
    assert one.noise_multiplier == own
    assert not ledger.entries()
    joined(one, 1.3)
    assert one.noise_multiplier == 1.3 * own
    spend_all(one)
    assert epsilon(ledger, "sum-only") < 1.6


def test_nothing_is_recorded_before_the_terms_are_known(tiny_settings: Make, ledger: Ledger) -> None:  # fmt: skip
    one = account(tiny_settings(**SUM), ledger)
    with pytest.raises(ValueError, match="Expected the number of silos"):
        one.spend_training(1, "train/1")
    assert not ledger.entries()


def test_a_resumed_run_keeps_its_terms(tiny_settings: Make, ledger: Ledger) -> None:
    settings = tiny_settings(**SUM)
    first = joined(account(settings, ledger), 1.2)
    first.spend_training(1, "train/1")
    again = account(settings, ledger)
    assert again.terms == first.terms
    assert again.noise_multiplier == first.noise_multiplier
    assert again.training_events(2) == first.training_events(2)
    again.spend_training(2, "train/2")
    again.join_sum(replace(again.terms, pinned=True))  # other keys' source, the same sum
    for changes in (
        {"silos": SILOS + 1},
        {"silos": SILOS - 1},
        {"dimension": DIMENSION + 1},
        {"noise_multiplier": first.noise_multiplier * 1.01},
        {"noise_multiplier": first.noise_multiplier * 0.99},
    ):
        with pytest.raises(LimitRefused, match="Expected"):
            again.join_sum(replace(again.terms, **changes))
    again.spend_training(3, "train/3")


def policy(epsilon: float, **changes: Any) -> LocalPolicy:
    return LocalPolicy(epsilon=epsilon, delta=1e-5, **changes)


def test_a_silo_s_own_budget_holds_by_its_share_alone_unless_it_says_otherwise(
    tiny_settings: Make, ledger: Ledger, tmp_path: Path
) -> None:
    settings = tiny_settings(**SUM)
    with pytest.raises(BudgetExceeded, match=r"budget.epsilon.*against the adversary server") as error:  # fmt: skip
        joined(account(settings, ledger, own=policy(3.0)))
    assert not ledger.entries()
    alone = error.value.epsilon
    assert alone > 3.0
    # with room for what the share alone costs, the run goes on; and the number was that cost
    wide = joined(account(settings, ledger, own=policy(alone * 1.001)))
    spend_all(wide)
    assert epsilon(ledger, "server") == pytest.approx(alone, rel=1e-6)
    with Ledger(tmp_path / "other.sqlite") as other:
        trusting = joined(account(settings, other, own=policy(3.0, against="sum-only")))
        spend_all(trusting)


def test_a_silo_s_own_bound_against_sums_calibrates(tiny_settings: Make, ledger: Ledger) -> None:
    settings = tiny_settings(**SUM)
    plain = account(settings, ledger).noise_multiplier
    tighter = account(settings, ledger, own=policy(1.0, against="sum-only")).noise_multiplier
    assert tighter > 1.3 * plain


def test_a_silo_insists_on_a_number_of_colluding_silos(tiny_settings: Make, ledger: Ledger) -> None:  # fmt: skip
    own = policy(3.0, against="sum-only", colluding=2)
    with pytest.raises(LimitRefused, match=r"Expected secure.colluding >= 2.*got secure.colluding=1"):  # fmt: skip
        account(tiny_settings(**SUM | {"secure.colluding": 1}), ledger, own=own)
    one = joined(account(tiny_settings(**SUM | {"secure.colluding": 2}), ledger, own=own))
    spend_all(one)
    assert epsilon(ledger, "sum-only:2") <= 2.0


def test_earlier_runs_count_against_who_learns_sums_as_against_the_server(
    tiny_settings: Make, ledger: Ledger
) -> None:
    event = dp_sgd(8 / 60, 2.0, 10)
    row = LedgerEntry("earlier", "alpha", "example", "train", 1, "k", {"server": event, "outsider": event})  # fmt: skip
    ledger.extend([row])
    one = account(tiny_settings(**SUM), ledger)
    assert one.spent_before() == ledger.spent("server", party="alpha", unit=Unit.EXAMPLE)
    spend_all(joined(one))
    assert epsilon(ledger, "sum-only") <= 2.0
