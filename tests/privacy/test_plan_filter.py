"""The filters over plans, against closed forms, quadrature and each other."""

from __future__ import annotations

import math
from collections import Counter

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accountants import make_accountant
from privacy.accountants.gaussian_curve import gaussian_delta
from privacy.calibration_filter import calibrate_later_plan
from privacy.events import constructors as ev
from privacy.events.multiset import multiset
from privacy.guarantee import Relation
from privacy.plan_filter import (
    RESERVE,
    Terms,
    charge,
    choose,
    equivalent_epsilon,
    gaussian_terms,
    renyi_terms,
    used,
)

DELTA = 1e-5
ADD, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE


def delta_of(mu: float, epsilon: float) -> mpmath.mpf:
    """The Gaussian curve, by mpmath."""
    with mpmath.workdps(30):
        e, m = mpmath.mpf(epsilon), mpmath.mpf(mu)
        return mpmath.ncdf(-e / m + m / 2) - mpmath.exp(e) * mpmath.ncdf(-e / m - m / 2)


@pytest.mark.parametrize("relation", [ADD, REPLACE])
@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 1e-5), (3.0, 1e-5), (0.5, 1e-2), (8, 1e-8)])
def test_after_a_plain_gaussian_the_limit_is_what_is_missing_in_squares(relation, epsilon, delta):
    """P1 = mu_1-GDP: m^2 = M^2 - mu_1^2, where M-GDP has 0.9 delta at epsilon."""
    with mpmath.workdps(30):
        whole = float(
            mpmath.findroot(
                lambda m: delta_of(m, epsilon) / (0.9 * delta) - 1, (1e-2, 9), solver="bisect"
            )
        )
    moves = 2 if relation is REPLACE else 1
    for share in (0.2, 0.7):
        mu = whole * share
        terms = gaussian_terms(multiset(ev.gaussian(moves / mu)), epsilon, delta, relation)
        exact = whole**2 - mu**2
        assert exact * (1 - 4e-3) <= terms.limit <= exact * (1 + 1e-7)
        assert terms.reserve == RESERVE * delta
        again = charge(terms, multiset(ev.gaussian(moves / 0.01)), 1, relation)
        assert again == pytest.approx(1e-4, rel=2e-2)


def test_a_sampled_first_plan_against_quadrature():
    """delta of one sampled Gaussian step composed with the limit's Gaussian, by integration in two numbers."""
    rate, noise, epsilon = 0.2, 0.9, 1.2
    plan = multiset(ev.dp_sgd(rate, noise, 1))
    delta = 0.02
    terms = gaussian_terms(plan, epsilon, delta, ADD)
    m = math.sqrt(terms.limit)
    x = np.linspace(-12, 14, 200_001)

    def density(mean: float) -> np.ndarray:
        return np.exp(-((x - mean) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))

    base, mixed = density(0.0), (1 - rate) * density(0.0) + rate * density(1.0)
    worst = 0.0
    for p, q in ((mixed, base), (base, mixed)):
        losses = np.log(p / q)
        curve = np.array([float(delta_one(m, epsilon - loss)) for loss in losses[::200]])
        worst = max(worst, float((p[::200] * curve).sum() * (x[200] - x[0])))
    assert (1 - RESERVE) * delta * 0.99 < worst <= (1 - RESERVE) * delta * (1 + 1e-6)


def delta_one(mu: float, epsilon: float) -> float:
    """The Gaussian curve at any epsilon, also below zero."""
    from scipy import stats

    e = min(epsilon, 700.0)
    return stats.norm.cdf(-e / mu + mu / 2) - math.exp(e) * stats.norm.cdf(-e / mu - mu / 2)


def test_renyi_after_a_plain_gaussian():
    """Divergence order / (2 sigma^2) of each; the conversion written out once more."""
    first, later = multiset(ev.gaussian(4.0)), multiset(ev.gaussian(10.0))
    terms = renyi_terms(first, 2.0, DELTA, ADD)
    order = terms.order
    spent = order / (2 * 16) + terms.limit
    with mpmath.workdps(30):
        a = mpmath.mpf(order)
        converted = spent + mpmath.log((a - 1) / a) - (mpmath.log(DELTA) + mpmath.log(a)) / (a - 1)
    assert float(converted) == pytest.approx(2.0, rel=1e-8)
    assert charge(terms, later, 1, ADD) == pytest.approx(order / 200, rel=1e-8)
    assert equivalent_epsilon(terms, first, terms.limit, DELTA, ADD) == pytest.approx(2.0)


def test_the_choice_takes_what_leaves_room_for_more_plans_like_the_first():
    steps = {"small": ev.dp_sgd(0.02, 1.1, 200), "large": ev.dp_sgd(0.05, 3.0, 500)}
    kinds = {}
    for name, event in steps.items():
        first = multiset(event)
        both = [gaussian_terms(first, 3.0, DELTA, ADD), renyi_terms(first, 3.0, DELTA, ADD)]
        copies = [terms.limit / charge(terms, first, 1, ADD) for terms in both]
        found = choose(first, 3.0, DELTA, ADD)
        assert found == both[int(np.argmax(copies))]
        kinds[name] = found.kind
    assert kinds == {"small": "renyi", "large": "gdp"}


def test_tails_of_later_plans_share_the_reserve():
    """The floors of all later plans, divided by 1 - delta_m(0), sum to less than the reserve."""
    terms = Terms("gdp", 4.0, reserve=1e-6)
    total = sum(terms.reserve / (k * (k + 1)) for k in range(1, 10**5))
    assert total < terms.reserve
    plan = multiset(ev.dp_sgd(0.02, 1.0, 50))
    charges = [charge(terms, plan, k, ADD) for k in (1, 2, 5, 50)]
    assert charges == sorted(charges), "a later place has a smaller floor and a larger mu"
    assert charges[0] < charges[-1]
    # Each mu is rigorous: the plan's curve lies below the Gaussian one plus the floor of its place.
    judge = make_accountant("pld")
    for k, squared in zip((1, 2, 5, 50), charges, strict=True):
        mu = math.sqrt(squared)
        share = terms.reserve / (k * (k + 1))
        for epsilon in np.linspace(0, 6, 25):
            bound = share + (1 - share) * gaussian_delta(mu, epsilon)
            assert judge.delta(plan, epsilon) <= bound * (1 + 1e-9)


def test_what_gives_no_guarantee_or_has_no_bound_is_infinitely_dear():
    terms = Terms("renyi", 1.0, 8.0)
    raw = multiset(ev.no_guarantee("counts"))
    assert charge(terms, raw, 1, ADD) == math.inf
    assert charge(Terms("gdp", 1.0, reserve=1e-6), raw, 1, ADD) == math.inf
    assert charge(Terms("gdp", 1.0, reserve=0.0), multiset(ev.gaussian(9.0)), 1, ADD) == math.inf
    assert gaussian_terms(raw, 1.0, DELTA, ADD).limit == 0
    assert choose(raw, 1.0, DELTA, ADD).limit == 0


PLANS = st.lists(
    st.sampled_from(
        [ev.dp_sgd(0.1, 2.0, 3), ev.gaussian(9.0), ev.dp_sgd(0.02, 1.0, 30), ev.pure_dp(0.1)]
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=20, deadline=None)
@given(st.lists(PLANS, min_size=1, max_size=5), st.sampled_from([0.8, 2.0]))
def test_what_is_admitted_costs_no_more_by_an_independent_sum(wanted, epsilon):
    """Fixed beforehand, the admitted plans must keep to the budget by tight composition of all of them; and their
    charges, added up here, to the limit."""
    plans = [multiset(plan) for plan in wanted]
    judge = make_accountant("pld")
    first = plans[0]
    if judge.epsilon(first, DELTA) > epsilon:
        return
    for terms in (
        gaussian_terms(first, epsilon, DELTA, ADD),
        renyi_terms(first, epsilon, DELTA, ADD),
    ):
        admitted: list[Counter] = []
        for plan in plans[1:]:
            if used(terms, [*admitted, plan], ADD) <= terms.limit:
                admitted.append(plan)
        total = 0.0
        for place, plan in enumerate(admitted, 1):
            total += charge(terms, plan, place, ADD)
        assert total <= terms.limit * (1 + 1e-12)
        assert judge.epsilon(sum(admitted, first), DELTA) <= epsilon


@pytest.mark.parametrize("kind", ["gdp", "renyi"])
def test_the_noise_of_a_later_plan_uses_what_is_left_and_not_more(kind):
    first = multiset(ev.dp_sgd(0.02, 1.5, 200))
    earlier = [multiset(ev.dp_sgd(0.02, 3.0, 100))]
    beside = multiset(ev.discrete_gaussian(40.0))
    make = gaussian_terms if kind == "gdp" else renyi_terms
    terms = make(first, 3.0, DELTA, ADD)
    noise = calibrate_later_plan(
        terms=terms, earlier=earlier, sampling_rate=0.02, steps=200, other_events=beside
    )
    left = terms.limit - used(terms, earlier, ADD)
    plan = beside + multiset(ev.dp_sgd(0.02, noise, 200))
    assert left * 0.998 <= charge(terms, plan, 2, ADD) <= left
    with pytest.raises(ValueError, match="No noise is enough"):
        calibrate_later_plan(
            terms=Terms(kind, 1e-9, terms.order, terms.reserve),
            earlier=[],
            sampling_rate=0.02,
            steps=200,
            other_events=beside,
        )


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("pld", 1.0), "kind"),
        (("gdp", -1.0), "limit"),
        (("gdp", math.inf), "limit"),
        (("renyi", 1.0, 1.0), "order"),
        (("gdp", 1.0, 0.0, 1.0), "reserve"),
    ],
)
def test_bad_terms(arguments, name):
    with pytest.raises(ValueError, match=name):
        Terms(*arguments)


def test_a_later_plan_of_truncated_samples_needs_a_gaussian_filter() -> None:
    first = Counter({ev.poisson_sampled(0.05, (ev.gaussian(2.0),)): 20})
    plan = {"earlier": [], "sampling_rate": 0.05, "steps": 20, "relation": Relation.ZERO_OUT}
    terms = gaussian_terms(first, 3.0, 1e-5, Relation.ZERO_OUT)
    plain = calibrate_later_plan(terms=terms, **plan)
    cut = calibrate_later_plan(terms=terms, **plan, truncated=(400, 30))
    assert plain < cut < 1.2 * plain
    renyi = renyi_terms(first, 3.0, 1e-5, Relation.ZERO_OUT)
    with pytest.raises(ValueError, match="it has no bound for an event of the plan"):
        calibrate_later_plan(terms=renyi, **plan, truncated=(400, 30))
