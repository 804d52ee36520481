"""The dominating mu: above the whole curve, and no larger than needed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import dp_event as dp
from dp_accounting.pld import PLDAccountant

from privacy.accountants import make_accountant
from privacy.accountants.dominating import DELTA_FLOOR, DominatingGdpAccountant
from privacy.accountants.dominating_mu import dominating_mu, log_gaussian_delta
from privacy.accountants.gaussian_curve import gaussian_delta
from privacy.budget import Budget
from privacy.events import constructors as ev
from privacy.events.multiset import multiset
from privacy.guarantee import Relation, Unit

NOISES = (1.7171, 0.8823, 0.6429, 0.4834)


def reference_schedule(noise):
    return multiset(ev.dp_sgd(256 / 60000, noise, 1000))


def curves(events, epsilons, relation=Relation.ZERO_OUT):
    pair = make_accountant("pld", relation).distributions(events)
    return np.max([d.delta(epsilons) for d in pair], axis=0)


def reach(events):
    """The epsilon at which the PLD's delta falls to the floor."""
    return make_accountant("pld").epsilon(events, DELTA_FLOOR)


@pytest.mark.parametrize("noise", NOISES)
def test_never_below_the_pld_and_one_percent_less_breaks_it(noise):
    events = reference_schedule(noise)
    mu = make_accountant("gdp-dominating").mu(events)
    # 200 values of epsilon that have nothing to do with the grid it was found on
    epsilons = np.sort(np.random.default_rng(1).uniform(0, reach(events), 200))
    deltas = curves(events, epsilons)
    gaussian = np.exp(log_gaussian_delta(mu, epsilons))
    assert np.all((gaussian >= deltas) | (deltas <= DELTA_FLOOR))
    less = np.exp(log_gaussian_delta(0.99 * mu, epsilons))
    assert np.any(less < deltas)


@pytest.mark.parametrize("noise", NOISES)
def test_never_below_dp_accountings_own_curve(noise):
    events = reference_schedule(noise)
    mu = make_accountant("gdp-dominating").mu(events)
    reference = PLDAccountant().compose(ev.dp_sgd(256 / 60000, noise, 1000))
    for epsilon in np.linspace(0, reach(events), 41)[:-1]:
        assert gaussian_delta(mu, float(epsilon)) >= reference.get_delta(float(epsilon)) * (
            1 - 1e-6
        )


def test_between_the_atoms_too():
    """A coarse distribution: the curves are compared between its losses, not only at them."""
    distribution = make_accountant("pld").distributions(multiset(dp.LaplaceDpEvent(0.7)))[0]
    coarse = type(distribution)(0.5, 0, np.array([0.3, 0.2, 0.3, 0.2]), 0.0, 0.0)
    mu = dominating_mu(coarse, 1e-9)
    fine = np.linspace(0, 1.5, 30001)
    deltas = coarse.delta(fine)
    at_atoms = [0, 10000, 20000]
    assert np.all(np.exp(log_gaussian_delta(mu, fine)) >= np.minimum(deltas, 1) - 1e-15)
    # A mu that is only right at the atoms would be below somewhere between them.
    low, high = 0.01, 10.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        enough = np.exp(log_gaussian_delta(middle, fine[at_atoms])) >= deltas[at_atoms]
        low, high = (low, middle) if enough.all() else (middle, high)
    assert np.any(np.exp(log_gaussian_delta(high, fine)) < deltas)
    assert mu > high


def test_a_gaussian_is_its_own_mu():
    for sigma in (0.5, 1.0, 5.0, 50.0):
        mu = make_accountant("gdp-dominating").mu(multiset(ev.gaussian(sigma)))
        assert mu >= 1 / sigma
        assert mu == pytest.approx(1 / sigma, rel=1e-3)


def test_mixed_events_and_replace_one():
    events = multiset([ev.dp_sgd(0.05, 1.0, 30), ev.gaussian(4.0), ev.dp_sgd(0.2, 3.0, 10)])
    for relation in Relation:
        mu = make_accountant("gdp-dominating", relation).mu(events)
        epsilons = np.linspace(0, 8, 977)
        deltas = curves(events, epsilons, relation)
        gaussian = np.exp(log_gaussian_delta(mu, epsilons))
        assert np.all((gaussian >= deltas) | (deltas <= DELTA_FLOOR))


def test_the_floor_is_in_the_note_of_a_guarantee():
    events = reference_schedule(0.8823)
    budget = Budget(3.0, 1e-5, accountant="gdp-dominating")
    sentence = budget.guarantee(events, Unit.EXAMPLE).sentence()
    assert "mu holds for every delta above 1.0e-10, not for smaller ones" in sentence
    assert make_accountant("gdp-dominating").note({}) == ""


def test_deltas_near_one_do_not_ask_for_a_larger_mu():
    """The PLD is 1 up to round-off there; with it, this mu would be four times as large."""
    events = multiset(ev.dp_sgd(0.5, 1.0, 1000))
    accountant = make_accountant("gdp-dominating")
    pld = make_accountant("pld")
    for delta in (1e-3, 1e-5, 1e-8):
        low = pld.epsilon(events, delta)
        assert low <= accountant.epsilon(events, delta) <= 1.1 * low
    for epsilon in (0.0, 50.0, 100.0, 200.0):
        assert accountant.delta(events, epsilon) >= pld.delta(events, epsilon) * (1 - 1e-9) - 1e-10


def test_losses_far_apart():
    """Little noise: most of the mass at no loss, some at losses in the thousands."""
    for noise in (0.01, 0.02, 0.05):
        events = multiset(ev.dp_sgd(0.01, noise, 3))
        accountant = make_accountant("gdp-dominating")
        pld = make_accountant("pld")
        for delta in (1e-3, 1e-6):
            assert accountant.epsilon(events, delta) >= pld.epsilon(events, delta)
        for epsilon in (0.5, 30.0, 1000.0):
            assert accountant.delta(events, epsilon) >= pld.delta(events, epsilon) * (1 - 1e-9)


def test_no_mu_where_round_off_leaves_no_delta_worth_the_name():
    events = multiset({ev.dp_sgd(1e-4, 5.0, 1): 10**10})
    accountant = make_accountant("gdp-dominating")
    assert accountant.floor(events) > 1e-6
    assert accountant.mu(events) == math.inf


def test_the_floor_is_part_of_the_statement():
    events = reference_schedule(0.8823)
    usual = DominatingGdpAccountant()
    coarse = DominatingGdpAccountant(delta_floor=1e-6)
    assert usual.floor(events) == DELTA_FLOOR
    assert coarse.mu(events) < usual.mu(events)
    assert coarse.delta(events, 50.0) == 1e-6  # never promises less than its floor
    # Asked for a delta below the floor, a mu of its own is used, and it holds.
    for delta in (1e-7, 1e-9, 1e-11):
        epsilon = coarse.epsilon(events, delta)
        assert float(curves(events, np.array([epsilon]))[0]) <= delta
    with pytest.raises(ValueError, match="delta_floor"):
        DominatingGdpAccountant(delta_floor=0.0)


def test_the_clt_mu_is_below_the_dominating_mu():
    for noise in NOISES:
        events = reference_schedule(noise)
        assert make_accountant("gdp-clt").mu(events) < make_accountant("gdp-dominating").mu(events)


def test_no_mu_for_what_has_too_much_infinite_mass():
    distribution = make_accountant("pld").distributions(multiset(ev.gaussian(1.0)))[0]
    hopeless = type(distribution)(1e-4, 0, np.array([0.5]), 0.5, 0.0)
    assert math.isinf(dominating_mu(hopeless, 1e-10))
