"""The Gaussian bound of a sum of discrete Gaussian shares: never below the exact numbers, and not far above."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as dp_pld
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.accountants.rdp import ORDERS
from privacy.copies import events_of_copies
from privacy.events import constructors as ev
from privacy.events.kinds import DiscreteGaussianSumDpEvent
from privacy.events.serialization import UnknownEvent, event_from_json, event_to_json
from privacy.guarantee import Relation
from privacy.secure_sum.bound import noise_multiplier
from tests.support.scalar_noise import PAPER_STRONG

CASES = [(4, 1), (4, 3), (5.5, 2), (8, 1), (16, 5)]


def pmf(sigma, shares, reach=14):
    """Return the exact probabilities of the sum of shares on -R..R, relative errors about 1e-15 each (no FFT)."""
    x = np.arange(-math.ceil(reach * sigma * math.sqrt(shares)) - 2, 0)
    x = np.concatenate([x, [0], -x[::-1]])
    one = np.exp(-((x / sigma) ** 2) / 2)
    one /= one.sum()
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    middle = total.size // 2
    return total[middle - x.size // 2 : middle + x.size // 2 + 1]


@pytest.mark.parametrize(("sigma", "shares"), CASES)
def test_quantiles_of_the_sum_are_as_close_as_the_theorem_says(sigma, shares):
    """Step 2 of the proof, all of it: the increments of Phi^-1(F(t)), up to 12 standard deviations out."""
    p = pmf(sigma, shares)
    tails = np.cumsum(p[::-1])[: p.size // 2]  # P[S >= t], t = R..1
    z = -special.ndtri_exp(np.log(tails))[::-1]  # at 1, 2, ..., R
    z = z[z < 12]
    largest = max(2 * z[0], np.diff(z).max())
    assert largest <= 1 / noise_multiplier(sigma, shares, 1.0)
    total = sigma * math.sqrt(shares)
    assert (
        largest > 1 / total
    )  # a discrete Gaussian is not one: without the correction the bound is false
    assert largest == pytest.approx((1 + total**-2 / 24) / total, rel=0.01 * total**-2)


@pytest.mark.parametrize("sigma", [4, 5.3, 20])
def test_the_ratio_in_step_three_is_as_small_as_the_proof_says(sigma):
    """E g(X') / g(x) on both sides of a = sigma, and that 1 / g is P[S = x] over the normal mass of the cell."""
    x = np.arange(0, math.ceil(30 * sigma))
    u = np.linspace(-0.5, 0.5, 2001)
    kernel = np.cosh(np.outer(x, u) / sigma**2) * np.exp(-(u**2) / (2 * sigma**2))
    g = np.trapezoid(kernel, u, axis=1)
    log_mass = special.log_ndtr(-(x - 0.5) / sigma)
    log_mass += np.log1p(-np.exp(special.log_ndtr(-(x + 0.5) / sigma) - log_mass))
    mass = np.exp(log_mass)
    density = np.exp(-((x / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
    assert np.allclose(density * g, mass, rtol=1e-5, atol=0)
    inner = mass * g
    expected = np.cumsum(inner[::-1])[::-1][1:] / np.cumsum(mass[::-1])[::-1][1:]  # over x' > x
    ratio = (expected / g[:-1])[1 : math.ceil(20 * sigma)]
    assert ratio.min() > 1
    assert ratio.max() <= 1 + 0.82 / sigma**2


def test_a_sum_of_shares_is_nearly_a_discrete_gaussian():
    """Step 4 of the proof with shares so small that the difference can be seen, against its bound."""
    with mpmath.workdps(40):
        for sigma in (0.5, 0.8, 1.2):
            grid = range(-60, 61)
            one = [mpmath.exp(-mpmath.mpf(x * x) / (2 * sigma**2)) for x in grid]
            norm = sum(one)
            both = [
                sum(
                    one[x - y + 60] * one[y + 60]
                    for y in range(max(-60, x - 60), min(60, x + 60) + 1)
                )
                / norm**2
                for x in range(-8, 9)
            ]
            wide = [mpmath.exp(-mpmath.mpf(x * x) / (4 * sigma**2)) for x in grid]
            ratios = [
                b / (wide[x + 60] / sum(wide)) for b, x in zip(both, range(-8, 9), strict=True)
            ]
            v = sigma**2 / 2
            e = 2 * sum(mpmath.exp(-2 * mpmath.pi**2 * v * i * i) for i in range(1, 20))
            tau = mpmath.log((1 + e) / (1 - e))
            found = max(abs(mpmath.log(r)) for r in ratios)
            assert 0.2 * tau < found <= tau


@pytest.mark.parametrize(("sigma", "shares"), CASES)
@pytest.mark.parametrize("shift", [1, 2, 5])
def test_renyi_divergence_is_below_the_bound_at_every_order(sigma, shares, shift):
    p = pmf(sigma, shares, reach=30)
    log_p = np.log(p[p > 0])
    ours, theirs = log_p[shift:], log_p[:-shift]
    exact = np.array([special.logsumexp(a * ours + (1 - a) * theirs) / (a - 1) for a in ORDERS])
    event = ev.discrete_gaussian_sum(sigma, shares, shift)
    bound = make_accountant("rdp").divergences({event: 1})
    some = np.array(ORDERS) <= 20  # those beyond put their mass outside of what is summed here
    assert (exact <= bound * (1 + 1e-9)).all()
    assert (bound[some] <= exact[some] * (1 + 2.5 / (sigma**2 * shares))).all()


def exact_delta(p, shifts, rate, epsilon):
    """Return delta of the Poisson-sampled vector mechanism, the larger of both directions, by summing all of its outputs."""
    moved = []
    for shift in shifts:
        q = np.zeros_like(p)
        q[shift:] = p[: p.size - shift]
        moved.append(q)
    base, other = p, moved[0]
    for q in moved[1:]:
        base, other = np.multiply.outer(base, p), np.multiply.outer(other, q)
    mixed = (1 - rate) * base + rate * other
    e = math.exp(epsilon)
    return max(np.maximum(mixed - e * base, 0).sum(), np.maximum(base - e * mixed, 0).sum())


@pytest.mark.parametrize(
    ("sigma", "shares", "shifts"),
    [(4, 1, (1,)), (4, 3, (3,)), (4, 1, (3, 4)), (5.5, 2, (2, 0)), (4, 2, (1, 1))],
)
@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_no_bound_is_below_the_exact_delta(sigma, shares, shifts, rate):
    """Vectors and samples too, in both directions; and the bound is close where the noise is not tiny."""
    p = pmf(sigma, shares)
    norm = math.hypot(*shifts)
    event = ev.discrete_gaussian_sum(sigma, shares, norm, 1, rate)
    for epsilon in (0.0, 0.05, 0.2, 0.5, 1.0, 2.0):
        exact = exact_delta(p, shifts, rate, epsilon)
        for name in ("pld", "rdp", "gdp-dominating"):
            assert make_accountant(name).delta({event: 1}, epsilon) >= exact * (1 - 1e-9) - 1e-13
    pld = make_accountant("pld").delta({event: 1}, 0.05)
    assert pld <= exact_delta(p, shifts, rate, 0.05) * 1.5


def test_composition_is_above_the_exact_one():
    """Two releases of one record with shift 10 are the vector mechanism with shift (10, 10)."""
    p = pmf(20, 1, reach=10)
    event = ev.discrete_gaussian_sum(20, 1, 10, 2)
    for epsilon in (0.0, 0.3, 1.0):
        exact = exact_delta(p, (10, 10), 1.0, epsilon)
        assert exact <= make_accountant("pld").delta({event: 1}, epsilon) <= exact * 1.1


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_two_sums_of_one_sample_are_one_vector(rate):
    """Both releases see the same Poisson sample: the exact mixture has the vector shift (10, 10)."""
    p = pmf(20, 1, reach=10)
    event = ev.poisson_sampled(rate, [ev.discrete_gaussian_sum(20, 1, 10)] * 2)
    for epsilon in (0.0, 0.3, 1.0):
        exact = exact_delta(p, (10, 10), rate, epsilon)
        assert exact <= make_accountant("pld").delta({event: 1}, epsilon) <= exact * 1.2


@pytest.mark.parametrize(("sigma", "shift"), [(4, 1), (8, 3), (20, 20)])
def test_above_dp_accounting_where_it_has_the_same(sigma, shift):
    theirs = dp_pld.from_discrete_gaussian_mechanism(
        sigma, sensitivity=shift, value_discretization_interval=1e-4, pessimistic_estimate=False
    )
    ours = make_accountant("pld").epsilon({ev.discrete_gaussian_sum(sigma, 1, shift): 1}, 1e-6)
    true = theirs.get_epsilon_for_delta(1e-6)
    assert true <= ours <= true * (1 + 3 / sigma**2) + 2e-3


def test_many_entries_and_a_fine_grid_cost_what_the_gaussian_costs():
    event = ev.discrete_gaussian_sum(2**14, 8, 2**15, 1000, 0.01)
    gaussian = ev.dp_sgd(0.01, math.sqrt(8) / 2, 1000)
    for name in ("pld", "rdp"):
        accountant = make_accountant(name)
        assert accountant.epsilon({event: 1}, 1e-5) == pytest.approx(
            accountant.epsilon({gaussian: 1}, 1e-5), rel=1e-6
        )


@given(
    st.floats(4, 2**20), st.integers(1, 9_999), st.floats(1, 1e9), st.sampled_from([1.0, 1.01, 3.0])
)
def test_more_noise_never_counts_for_less(sigma, shares, sensitivity, factor):
    here = noise_multiplier(sigma, shares, sensitivity)
    assert here < sigma * math.sqrt(shares) / sensitivity
    assert noise_multiplier(sigma * factor, shares, sensitivity) >= here
    assert noise_multiplier(sigma, shares + 1, sensitivity) > here
    assert noise_multiplier(sigma, shares, sensitivity * factor) <= here


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((3.99, 2, 1.0), "sigma"),
        ((math.nan, 2, 1.0), "sigma"),
        ((2.0**41, 2, 1.0), "sigma"),
        ((4.0, 0, 1.0), "shares"),
        ((4.0, 1.5, 1.0), "shares"),
        ((4.0, 10_001, 1.0), "shares"),
        ((4.0, 2, 0.5), "sensitivity"),
        ((4.0, 2, math.inf), "sensitivity"),
    ],
)
def test_what_is_not_proven_is_refused(values, name):
    for make in (noise_multiplier, DiscreteGaussianSumDpEvent, ev.discrete_gaussian_sum):
        with pytest.raises(ValueError, match=f"Expected .*{name}"):
            make(*values)


def test_json_round_trip_and_refusal():
    event = ev.discrete_gaussian_sum(23, 6, 40.5, 3, 0.25)
    text = event_to_json(event)
    assert event_from_json(text) == event
    assert event_to_json(event_from_json(text)) == text
    with pytest.raises(UnknownEvent, match="sigma"):
        event_from_json(event_to_json(ev.discrete_gaussian_sum(4, 6, 40)).replace(":4.0", ":3.0"))


def test_a_replaced_record_moves_the_sum_twice_as_far():
    one = make_accountant("pld", Relation.REPLACE_ONE).epsilon(
        {ev.discrete_gaussian_sum(8, 2, 3): 1}, 1e-6
    )
    two = make_accountant("pld").epsilon({ev.discrete_gaussian_sum(8, 2, 6): 1}, 1e-6)
    assert one == pytest.approx(two, rel=1e-6)


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_copies_of_a_record_cost_at_least_the_exact_mixture(rate):
    """Three copies, each sampled by itself, that move the sum by 2 each."""
    p, copies, shift = pmf(4, 2), 3, 2
    events = events_of_copies({ev.discrete_gaussian_sum(4, 2, shift, 1, rate): 1}, copies)
    mixed = np.zeros_like(p)
    for number in itertools.product([0, 1], repeat=copies):
        weight = math.prod(rate if drawn else 1 - rate for drawn in number)
        moved = np.zeros_like(p)
        moved[shift * sum(number) :] = p[: p.size - shift * sum(number)]
        mixed += weight * moved
    for epsilon in (0.0, 0.3, 1.0):
        e = math.exp(epsilon)
        exact = max(np.maximum(mixed - e * p, 0).sum(), np.maximum(p - e * mixed, 0).sum())
        assert exact <= make_accountant("pld").delta(events, epsilon) <= exact * 1.6 + 1e-6


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_a_sampled_sum_has_no_number_under_replace_one(accountant):
    """Domination is of pairs, and a replaced record in a sampled sum makes three distributions."""
    for event in (
        ev.discrete_gaussian_sum(50, 8, 100, 3, 0.1),
        ev.vector_noise(PAPER_STRONG, 9, 1, 0.1),
    ):
        replace = make_accountant(accountant, Relation.REPLACE_ONE)
        assert "zero-out and add-or-remove-one only" in str(replace.why_unsupported({event: 1}))
        with pytest.raises(UnsupportedEvent):
            replace.epsilon({event: 1}, 1e-5)
        for relation in (Relation.ZERO_OUT, Relation.ADD_OR_REMOVE_ONE):
            assert make_accountant(accountant, relation).epsilon({event: 1}, 1e-5) < math.inf
