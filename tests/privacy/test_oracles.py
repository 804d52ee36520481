"""Accountants against numbers computed in other ways: no bound is ever below the truth.

The oracles (quadrature; brute-force binning) are those of `tests.oracles.accounting`.
"""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from dp_accounting import dp_event as dp

from privacy.accountants import make_accountant
from privacy.events import constructors as ev
from privacy.events.multiset import multiset
from privacy.guarantee import Relation
from tests.oracles.accounting import (
    DELTA,
    RATE,
    STEPS,
    TABLE,
    check_binning,
    check_quadrature,
    table_row,
)
from tests.oracles.oracles import (
    binned_delta,
    quadrature_delta,
)

ADD, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE
BOUNDS = ("pld", "rdp", "gdp-exact", "gdp-dominating")


def test_the_quadrature_agrees_with_mpmath():
    """Poisson-sampled Gaussian and a Gaussian, integrated at 30 digits."""
    mpmath.mp.dps = 30
    q, sigma, mu, epsilon = 0.2, 0.8, 0.5, 1.0

    def delta_inner(e):
        return mpmath.ncdf(-e / mu + mu / 2) - mpmath.exp(e) * mpmath.ncdf(-e / mu - mu / 2)

    def integrand(x, turned):
        n0 = mpmath.npdf(x, 0, sigma)
        mix = (1 - q) * n0 + q * mpmath.npdf(x, 1, sigma)
        p, r = (n0, mix) if turned else (mix, n0)
        return p * delta_inner(epsilon - mpmath.log(p / r))

    points = [-10, -4, -1, 0, 1, 2, 4, 11]
    exact = max(mpmath.quad(lambda x, t=t: integrand(x, t), points) for t in (False, True))
    got = quadrature_delta([ev.dp_sgd(q, sigma, 1)], mu, epsilon)
    assert got == pytest.approx(float(exact), rel=1e-10)


@pytest.mark.parametrize("seed", range(6))
def test_no_bound_is_below_the_exact_delta(seed):
    assert check_quadrature(seed).violations == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_no_bound_is_below_the_exact_delta_100_schedules(seed):
    assert check_quadrature(seed).violations == []


@pytest.mark.parametrize(
    ("q", "sigma", "mu"), [(0.1, 1.0, 0.5), (0.5, 0.7, 1.0), (0.02, 2.0, 0.2), (0.9, 3.0, 0.3)]
)
def test_replace_one_against_quadrature(q, sigma, mu):
    """Sampled and plain Gaussians under replace-one; the plain one has twice the sensitivity."""
    step = ev.dp_sgd(q, sigma, 1)
    schedule = multiset([step, ev.gaussian(2 / mu)])
    for name in ("pld", "gdp-dominating"):
        accountant = make_accountant(name, REPLACE)
        for epsilon in (0.0, 0.5, 1.5, 3.0):
            exact = quadrature_delta([step], mu, epsilon, REPLACE)
            got = accountant.delta(schedule, epsilon)
            assert got >= exact * (1 - 1e-6) - 1e-10
            if name == "pld":
                assert got <= exact * 1.001 + 1e-9


@pytest.mark.parametrize("seed", range(30))
def test_replace_one_pair_dominates_other_pairs_of_records(seed):
    """The pair (+1, -1) that the PLD uses is at least as bad as any other two records."""
    rng = np.random.default_rng(seed)
    q, sigma = rng.uniform(0.01, 0.99), rng.uniform(0.4, 3)
    angle = rng.uniform(0, math.pi, 2)
    length = rng.uniform(0, 1, 2)
    u = np.array([length[0] * math.cos(angle[0]), length[0] * math.sin(angle[0])])
    v = np.array([length[1] * math.cos(angle[1]), -length[1] * math.sin(angle[1])])
    grid = np.linspace(-8 * sigma - 1, 8 * sigma + 1, 401)
    x, y = np.meshgrid(grid, grid)
    cell = (grid[1] - grid[0]) ** 2

    def density(shift):
        square = (x - shift[0]) ** 2 + (y - shift[1]) ** 2
        return np.exp(-square / (2 * sigma**2)) / (2 * math.pi * sigma**2)

    p = (1 - q) * density((0, 0)) + q * density(u)
    r = (1 - q) * density((0, 0)) + q * density(v)
    accountant = make_accountant("pld", REPLACE)
    for epsilon in (0.0, 0.2, 1.0):
        found = float(np.maximum(p - math.exp(epsilon) * r, 0).sum() * cell)
        bound = accountant.delta(multiset(ev.dp_sgd(q, sigma, 1)), epsilon)
        assert found <= bound + 2e-5  # the grid's own error


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize(("q", "sigma"), itertools.product((1e-6, 0.01, 0.999), (0.01, 0.3, 30.0)))
def test_total_variation_of_one_step_in_both_directions(q, sigma, relation):
    """delta(0) is q times the total variation of the Gaussians: known for any noise."""
    distance = 2.0 if relation is REPLACE else 1.0
    exact = q * math.erf(distance / (2 * sigma) / math.sqrt(2))
    accountant = make_accountant("pld", relation)
    for distribution in accountant.distributions(multiset(ev.dp_sgd(q, sigma, 1))):
        got = float(distribution.delta(0.0)[0])
        assert got >= exact * (1 - 1e-12)
        assert got <= exact * (1 + 1e-5) + 1e-14


# -- worlds --------------------------------------------------------------------------------------


def world(rng, q, sigma, extreme):
    """Densities (P, Q, cell) of one step on two neighbouring data sets of numbers in [-1, 1].

    One record is u in one and v in the other; up to three more records are sampled, too. All
    possible samples are enumerated.
    """
    u, v = (1.0, -1.0) if extreme else rng.uniform(-1, 1, 2)
    others = rng.uniform(-1, 1, 0 if extreme else rng.integers(0, 4))
    x = np.linspace(-4 - 9 * sigma, 4 + 9 * sigma, 4001)
    result = []
    for own in (u, v):
        density = np.zeros(x.size)
        for kept in itertools.product((0, 1), repeat=1 + others.size):
            weight = math.prod(q if k else 1 - q for k in kept)
            centre = float(np.dot(kept, [own, *others]))
            density += weight * np.exp(-(((x - centre) / sigma) ** 2) / 2)
        result.append(density / (sigma * math.sqrt(2 * math.pi)))
    return *result, x[1] - x[0]


def world_delta(worlds, epsilon, width=1e-3):
    """Lower bound of the hockey-stick divergence of several steps, by binning every output."""
    start, masses = 0, np.ones(1)
    for p, r, cell in worlds:
        loss = np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(r, 1e-300))
        index = np.floor(loss / width).astype(int)
        single = np.bincount(index - index.min(), p * cell)
        masses = np.convolve(masses, single)
        start += int(index.min())
    losses = (start + np.arange(masses.size)) * width
    over = losses > epsilon
    return float(-np.expm1(epsilon - losses[over]) @ masses[over])


@pytest.mark.parametrize("seed", range(12))
def test_replace_one_bounds_every_world_and_the_extreme_one_tightly(seed):
    """Two exact worlds, enumerated: what PLD says of replace-one with Poisson sampling."""
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(1, 4))
    mechanisms = [(rng.uniform(0.02, 0.9), rng.uniform(0.7, 2)) for _ in range(steps)]
    schedule = multiset([ev.dp_sgd(q, s, 1) for q, s in mechanisms])
    accountant = make_accountant("pld", REPLACE)
    worst = [world(rng, q, s, extreme=True) for q, s in mechanisms]
    for epsilon in (0.0, 0.5, 1.5):
        bound = accountant.delta(schedule, epsilon)
        for _ in range(4):
            worlds = [world(rng, q, s, extreme=False) for q, s in mechanisms]
            turned = [(r, p, cell) for p, r, cell in worlds]
            assert max(world_delta(worlds, epsilon), world_delta(turned, epsilon)) <= bound + 1e-9
        found = world_delta(worst, epsilon)
        assert found <= bound + 1e-9
        assert found >= 0.97 * accountant.delta(schedule, epsilon + 1e-3 * steps) - 1e-9


# -- binning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_no_bound_is_below_the_binned_lower_bound(seed):
    assert check_binning(seed).violations == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_no_bound_is_below_the_binned_lower_bound_100_schedules(seed):
    assert check_binning(seed).violations == []


def test_the_checks_see_an_accountant_that_is_low(monkeypatch):
    """Noise taken for 2 % more than it is: both checks must say so."""
    from privacy.accountants import pld

    whole = pld.gaussian_losses
    monkeypatch.setattr(pld, "gaussian_losses", lambda noise, *rest: whole(1.02 * noise, *rest))
    pld._base.cache_clear(), pld._composed.cache_clear(), pld._epsilon.cache_clear()
    try:
        assert any(check_quadrature(seed).violations for seed in range(2))
        assert any(check_binning(seed).violations for seed in range(4))
    finally:
        pld._base.cache_clear(), pld._composed.cache_clear(), pld._epsilon.cache_clear()


@pytest.mark.parametrize("seed", range(3))
def test_the_clt_is_an_approximation_that_may_be_below(seed):
    """Why it is never called a bound: at small noise it is far below the exact cost."""
    step = ev.dp_sgd(0.01 * (seed + 1), 0.6, 1)
    schedule = multiset(dp.SelfComposedDpEvent(step, 20))
    clt, pld = make_accountant("gdp-clt"), make_accountant("pld")
    assert clt.epsilon(schedule, 1e-5) < 0.7 * pld.epsilon(schedule, 1e-5)
    epsilon = clt.epsilon(schedule, 1e-5)
    assert binned_delta(schedule, epsilon) > 1e-5  # the oracle refutes it


# -- the reference table -----------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"epsilon={row.target}")
def test_reference_table(row):
    for deviation in table_row(row):
        assert deviation.met, deviation


def cost(accountant, noise):
    return make_accountant(accountant).epsilon(multiset(ev.dp_sgd(RATE, noise, STEPS)), DELTA)


@pytest.mark.parametrize("noise", [1.7171, 0.8823, 0.6429, 0.4834])
def test_pld_agrees_with_opacus_prv(noise):
    """Two implementations that share no code: PRV's interval of 0.01 holds PLD's epsilon."""
    prv = pytest.importorskip("opacus.accountants").PRVAccountant()
    prv.history = [(noise, RATE, STEPS)]
    upper = prv.get_epsilon(DELTA)
    assert upper - 0.021 <= cost("pld", noise) <= upper


def test_the_reference_orders_the_accountants():
    """At one noise: the CLT below PLD, PLD below RDP and the dominating mu."""
    values = {name: cost(name, 0.8823) for name in ("gdp-clt", *BOUNDS) if name != "gdp-exact"}
    assert values["gdp-clt"] < values["pld"]
    assert all(values[name] > values["pld"] for name in ("rdp", "gdp-dominating"))
