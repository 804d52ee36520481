"""The budget: asked of a plan before its first step, without slack, the same after a restart."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from dp_accounting import dp_event as dp

from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.budget import Budget, BudgetExceeded
from privacy.calibration import calibrate_noise_multiplier, calibrate_steps
from privacy.events import constructors as ev
from privacy.events.multiset import multiset
from privacy.guarantee import Relation, Unit
from privacy.plan_filter import Terms, used

DELTA = 1e-5
STEP = next(iter(multiset(ev.dp_sgd(0.02, 1.0, 1))))
MILD = next(iter(multiset(ev.dp_sgd(0.02, 2.0, 1))))


def test_the_largest_plan_that_fits_is_admitted_and_not_one_step_more():
    most = calibrate_steps(epsilon=1, delta=DELTA, sampling_rate=0.02, noise_multiplier=1.0).steps
    budget = Budget(1.0, DELTA)
    budget.admit([{STEP: most}])
    with pytest.raises(BudgetExceeded, match="not taken") as caught:
        budget.admit([{STEP: most + 1}])
    assert caught.value.epsilon > 1.0
    assert caught.value.target == 1.0
    message = str(caught.value)
    for part in ("epsilon=1", "delta=1e-05", "server", "zero-out", "pld"):
        assert part in message


def test_no_slack():
    events = Counter({STEP: 100})
    exact = make_accountant("pld").epsilon(events, DELTA)
    Budget(exact, DELTA).admit([events])
    with pytest.raises(BudgetExceeded):
        Budget(math.nextafter(exact, 0), DELTA).admit([events])


def test_a_first_plan_that_uses_the_budget_up_leaves_nothing():
    noise = calibrate_noise_multiplier(
        epsilon=3, delta=DELTA, sampling_rate=0.05, steps=40
    ).noise_multiplier
    plan = multiset(ev.dp_sgd(0.05, noise, 40))
    budget = Budget(3.0, DELTA)
    budget.admit([plan])
    with pytest.raises(BudgetExceeded, match="each of which may depend on those before"):
        budget.admit([plan, multiset(ev.dp_sgd(0.05, noise, 1))])


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_later_plans_are_admitted_up_to_the_limit_and_no_further(accountant):
    budget = Budget(1.0, DELTA, accountant=accountant)
    first, small = {MILD: 100}, {MILD: 50}
    terms = budget.terms(first)
    assert terms.kind == ("renyi" if accountant == "rdp" else terms.kind)
    plans = [first]
    while used(terms, [*plans[1:], small], budget.relation) <= terms.limit:
        plans.append(small)
        budget.admit(plans, terms)
    with pytest.raises(BudgetExceeded) as caught:
        budget.admit([*plans, small], terms)
    assert caught.value.epsilon > 1.0
    assert len(plans) > 1
    assert used(terms, plans[1:], Relation.ADD_OR_REMOVE_ONE) <= terms.limit
    assert used(terms, [*plans[1:], small], Relation.ADD_OR_REMOVE_ONE) > terms.limit
    assert budget.held_epsilon(plans, terms) <= 1.0
    # What a filter admits costs no more than tight composition says of the same plans fixed beforehand.
    assert make_accountant("pld").epsilon(sum(map(Counter, plans), Counter()), DELTA) <= 1.0


def test_recorded_terms_hold_and_are_not_chosen_again():
    budget = Budget(1.0, DELTA)
    first, small = {MILD: 100}, {MILD: 50}
    budget.admit([first, small])
    with pytest.raises(BudgetExceeded):
        budget.admit([first, small], Terms("gdp", 1e-9, reserve=1e-6))


def test_a_release_without_privacy_needs_an_infinite_budget():
    raw = multiset(ev.no_guarantee("counts"))
    with pytest.raises(BudgetExceeded, match="inf"):
        Budget(100.0, DELTA).admit([raw])
    with pytest.raises(BudgetExceeded, match="inf"):
        Budget(100.0, DELTA).admit([{STEP: 1}, raw])
    with pytest.raises(BudgetExceeded, match="inf"):
        Budget(100.0, DELTA).admit([raw, {STEP: 1}])
    Budget(math.inf, DELTA).admit([raw, {STEP: 1}])


@pytest.mark.parametrize("epsilon", [1.0, math.inf])
def test_unsupported_events_are_refused(epsilon):
    budget = Budget(epsilon, DELTA)
    unsupported = {dp.SampledWithReplacementDpEvent(100, 5, dp.GaussianDpEvent(1.0)): 1}
    for plans in ([unsupported], [{STEP: 1}, unsupported]):
        with pytest.raises(UnsupportedEvent, match="SampledWithReplacement"):
            budget.admit(plans)
    budget.admit([{STEP: 1}])


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
