"""The budget: checked before, without slack, the same after a restart."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from dp_accounting import dp_event as dp
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import events as ev
from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.budget import Budget, BudgetExceeded
from privacy.calibration import calibrate_noise_multiplier, calibrate_steps
from privacy.event_counts import multiset
from privacy.ledger import Ledger, LedgerEntry
from privacy.vocabulary import Relation, Unit

DELTA = 1e-5
STEP = next(iter(multiset(ev.dp_sgd(0.02, 1.0, 1))))
NOTHING: Counter = Counter()


def test_it_stops_exactly_at_the_last_step_that_fits():
    most = calibrate_steps(epsilon=1, delta=DELTA, sampling_rate=0.02, noise_multiplier=1.0).steps
    budget = Budget(1.0, DELTA)
    budget.admit({STEP: most - 1}, {STEP: 1})
    with pytest.raises(BudgetExceeded, match="not taken") as caught:
        budget.admit({STEP: most}, {STEP: 1})
    assert caught.value.epsilon > 1.0
    assert caught.value.target == 1.0
    message = str(caught.value)
    for part in ("epsilon=1", "delta=1e-05", "server", "zero-out", "pld"):
        assert part in message


def test_no_slack():
    events = Counter({STEP: 100})
    exact = make_accountant("pld").epsilon(events, DELTA)
    Budget(exact, DELTA).admit(NOTHING, events)
    with pytest.raises(BudgetExceeded):
        Budget(math.nextafter(exact, 0), DELTA).admit(NOTHING, events)


def test_a_calibrated_schedule_is_admitted_step_by_step_and_not_one_more():
    noise = calibrate_noise_multiplier(
        epsilon=3, delta=DELTA, sampling_rate=0.05, steps=40
    ).noise_multiplier
    step = multiset(ev.dp_sgd(0.05, noise, 1))
    plan = multiset(ev.dp_sgd(0.05, noise, 40))
    for planned in (None, plan):
        budget, spent = Budget(3.0, DELTA), Counter()
        for _ in range(40):
            budget.admit(spent, step, planned)
            spent += step
        with pytest.raises(BudgetExceeded):
            budget.admit(spent + step, step, planned)


def test_a_plan_that_is_too_dear_does_not_admit():
    budget = Budget(0.5, DELTA)
    budget.admit(NOTHING, {STEP: 1}, planned={STEP: 10**5})  # this step fits, whatever the plan
    with pytest.raises(BudgetExceeded):
        budget.admit({STEP: 5 * 10**4}, {STEP: 1}, planned={STEP: 10**5})


def test_a_plan_does_not_admit_what_it_does_not_contain():
    budget = Budget(1.0, DELTA)
    plan = {STEP: 10}
    budget.admit(NOTHING, {STEP: 10}, plan)
    with pytest.raises(BudgetExceeded):
        budget.admit({STEP: 10}, {ev.gaussian(0.5): 1}, plan)
    with pytest.raises(BudgetExceeded):
        budget.admit({STEP: 10, ev.gaussian(0.5): 1}, {STEP: 1}, plan)


def test_planned_steps_cost_no_computation(monkeypatch):
    budget = Budget(3.0, DELTA)
    plan = multiset(ev.dp_sgd(0.02, 1.0, 200))
    budget.admit(NOTHING, {STEP: 1}, plan)

    def fail(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(budget.accountant, "_epsilon", fail)
    for spent in range(200):
        budget.admit({STEP: spent}, {STEP: 1}, plan)
    with pytest.raises(AssertionError, match="computed again"):
        budget.admit({STEP: 200}, {STEP: 1}, plan)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.sampled_from([ev.dp_sgd(0.1, 1.5, 3), ev.gaussian(6.0), dp.LaplaceDpEvent(9.0)]),
        max_size=12,
    ),
    st.floats(0.3, 3),
)
def test_what_is_admitted_never_costs_more_than_the_budget(steps, epsilon):
    budget, spent = Budget(epsilon, DELTA), Counter()
    for step in steps:
        new = multiset(step)
        try:
            budget.admit(spent, new)
        except BudgetExceeded:
            assert budget.cost(spent + new) > epsilon
        else:
            spent += new
    assert make_accountant("pld").epsilon(spent, DELTA) <= epsilon


def test_a_release_without_privacy_needs_an_infinite_budget():
    with pytest.raises(BudgetExceeded, match="inf"):
        Budget(100.0, DELTA).admit(NOTHING, multiset(ev.no_guarantee("counts")))
    Budget(math.inf, DELTA).admit(NOTHING, multiset(ev.no_guarantee("counts")))


@pytest.mark.parametrize("epsilon", [1.0, math.inf])
def test_unsupported_events_are_refused_before_anything_changes(epsilon):
    budget = Budget(epsilon, DELTA)
    with pytest.raises(UnsupportedEvent, match="SampledWithReplacement"):
        budget.admit(
            NOTHING, {dp.SampledWithReplacementDpEvent(100, 5, dp.GaussianDpEvent(1.0)): 1}
        )
    budget.admit(NOTHING, {STEP: 1})


def entry(number, run="run"):
    event = ev.dp_sgd(0.1, 2.0, 1)
    return LedgerEntry(
        run, "silo", Unit.EXAMPLE, "train", number, f"step-{number}",
        {"server": event, "outsider": event},
    )  # fmt: skip


def run_until_refused(path, budget, run, stop_after=None):
    """Take steps as a run does: ask, record, (release). Returns the number of steps recorded."""
    with Ledger(path) as ledger:
        start = len(ledger.entries(run=run))
        for number in range(start, 10**4):
            if stop_after is not None and number >= stop_after:
                break
            spent = ledger.spent(budget.adversary, party="silo", unit=Unit.EXAMPLE)
            try:
                budget.admit(spent, multiset(ev.dp_sgd(0.1, 2.0, 1)))
            except BudgetExceeded:
                break
            ledger.append(entry(number, run))
        return len(ledger.entries(run=run))


def test_restart_neither_resets_nor_spends_twice_and_runs_share(tmp_path):
    most = calibrate_steps(epsilon=0.9, delta=DELTA, sampling_rate=0.1, noise_multiplier=2.0).steps
    assert most > 6
    path = tmp_path / "straight.sqlite"
    assert run_until_refused(path, Budget(0.9, DELTA), "run") == most
    path = tmp_path / "restarted.sqlite"
    for stop in (2, 3, 5):
        run_until_refused(path, Budget(0.9, DELTA), "run", stop_after=stop)
    assert run_until_refused(path, Budget(0.9, DELTA), "run") == most
    path = tmp_path / "shared.sqlite"
    first = run_until_refused(path, Budget(0.9, DELTA), "one", stop_after=4)
    second = run_until_refused(path, Budget(0.9, DELTA), "two")
    assert (first, first + second) == (4, most)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0.0, DELTA), "epsilon"),
        ((math.nan, DELTA), "epsilon"),
        ((1.0, 1.0), "delta"),
        ((1.0, -0.1), "delta"),
        ((1.0, DELTA, Relation.ZERO_OUT, "everyone"), "adversary"),
        ((1.0, DELTA, Relation.ZERO_OUT, "server", "moments"), "moments"),
        ((1.0, DELTA, Relation.ZERO_OUT, "server", "gdp-clt"), "bound"),
    ],
)
def test_bad_budgets(arguments, name):
    with pytest.raises(ValueError, match=name):
        Budget(*arguments)


def test_guarantee_states_the_spend():
    budget = Budget(3.0, DELTA, accountant="gdp-dominating")
    guarantee = budget.guarantee({STEP: 50}, Unit.CLIENT)
    assert guarantee.epsilon == budget.cost({STEP: 50})
    assert guarantee.mu == make_accountant("gdp-dominating").mu({STEP: 50})
    assert guarantee.bound
