"""Accountants against numbers computed in other ways: no bound is ever below the truth.

Two oracles, which share no code with the accountants:

* quadrature, to about 1e-12: outputs of up to two mechanisms are integrated on a grid, and all plain
  Gaussians are the closed form inside;
* binning, for many mechanisms: losses rounded down to a grid and convolved term by term, which
  gives a lower bound of delta.
"""

from __future__ import annotations

import math
import random

import mpmath
import numpy as np
import pytest
from dp_accounting import dp_event as dp
from scipy.special import log_ndtr, ndtr

from privacy import events as ev
from privacy.accountants import make_accountant
from privacy.vocabulary import Relation

ADD, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE
BOUNDS = ("pld", "rdp", "prv", "gdp-exact", "gdp-dominating")
DELTAS = (1e-3, 1e-5, 1e-7)


# -- quadrature --------------------------------------------------------------------------------


def closed_form(mu, epsilon):
    """Delta of mu-GDP at any real epsilon."""
    upper, lower = log_ndtr(-epsilon / mu + mu / 2), epsilon + log_ndtr(-epsilon / mu - mu / 2)
    return np.exp(upper) * -np.expm1(np.minimum(lower - upper, 0.0))


def output_density(event, relation):
    """(x, weights of P, loss ln P/Q at x) for the direction in which a record is removed."""
    if isinstance(event, dp.PoissonSampledDpEvent):
        q, noise = event.sampling_probability, event.event
    else:
        q, noise = 1.0, event
    scale = noise.noise_multiplier
    if isinstance(noise, dp.GaussianDpEvent):
        # The trapezoidal rule: exponentially accurate for what is smooth and vanishes at both ends.
        x = np.linspace(-10 * scale - 1, 10 * scale + 1, 1601)
        weights = np.full(x.size, x[1] - x[0])

        def log_density(shift):
            return -((x - shift) ** 2) / (2 * scale**2) - math.log(scale * math.sqrt(2 * math.pi))
    else:
        # Gauss-Legendre on panels between the kinks at the shifts -1, 0 and 1.
        tail = np.concatenate([np.linspace(0, 5, 11), np.linspace(6, 50, 45)]) * scale
        inner = np.linspace(-1, 1, 2 * max(2, math.ceil(2 / scale)) + 1)
        panels = np.concatenate([-1 - tail[:0:-1], inner, 1 + tail[1:]])
        nodes, node_weights = np.polynomial.legendre.leggauss(12)
        half, middle = np.diff(panels)[:, None] / 2, (panels[:-1] + panels[1:])[:, None] / 2
        x, weights = (middle + half * nodes).ravel(), (half * node_weights).ravel()

        def log_density(shift):
            return -np.abs(x - shift) / scale - math.log(2 * scale)

    def mixture(shift):
        if q == 1:
            return log_density(shift)
        return np.logaddexp(math.log1p(-q) + log_density(0.0), math.log(q) + log_density(shift))

    p = mixture(1.0)
    other = mixture(-1.0) if relation is REPLACE else log_density(0.0)
    return p, other, weights


def quadrature_delta(events, gaussians_mu, epsilon, relation=ADD):
    """The exact delta: the larger one of the two directions."""
    results = []
    for turned in (False, True):
        axes = []
        for event in events:
            p, q, weights = output_density(event, relation)
            p, q = (q, p) if turned else (p, q)
            mass = np.exp(p) * weights
            keep = mass > 1e-25
            axes.append((mass[keep], (p - q)[keep]))
        total = 0.0
        if not axes:
            total = float(closed_form(gaussians_mu, np.float64(epsilon)))
        elif len(axes) == 1:
            mass, loss = axes[0]
            total = float(mass @ closed_form(gaussians_mu, epsilon - loss))
        else:
            (mass_a, loss_a), (mass_b, loss_b) = axes
            for m, loss in zip(mass_a, loss_a, strict=True):
                total += m * float(mass_b @ closed_form(gaussians_mu, epsilon - loss - loss_b))
        results.append(total)
    return max(results)


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


def random_small_schedule(rng):
    """One or two sampled or Laplace mechanisms, and some Gaussians."""
    events = []
    for _ in range(rng.choice([1, 1, 2])):
        noise = dp.GaussianDpEvent(rng.uniform(0.5, 3))
        events.append(
            rng.choice(
                [
                    dp.PoissonSampledDpEvent(10 ** rng.uniform(-3, -0.1), noise),
                    dp.PoissonSampledDpEvent(10 ** rng.uniform(-3, -0.1), noise),
                    dp.LaplaceDpEvent(rng.uniform(0.5, 4)),
                    dp.PoissonSampledDpEvent(
                        10 ** rng.uniform(-2, -0.1), dp.LaplaceDpEvent(rng.uniform(0.5, 4))
                    ),
                ]
            )
        )
    gaussians = [dp.GaussianDpEvent(rng.uniform(0.8, 6)) for _ in range(rng.randint(1, 4))]
    return events, gaussians


def check_small_schedule(seed):
    rng = random.Random(seed)
    events, gaussians = random_small_schedule(rng)
    mu = math.sqrt(sum(g.noise_multiplier**-2 for g in gaussians))
    schedule = ev.multiset(events + gaussians)
    accountants = [make_accountant(name) for name in BOUNDS]
    accountants = [a for a in accountants if a.supports(schedule)]
    assert {a.name for a in accountants} >= {"pld", "gdp-dominating"}
    for epsilon in (0.0, 0.3, 1.0, 2.5, 5.0):
        exact = quadrature_delta(events, mu, epsilon)
        if exact < 1e-9:
            continue
        for accountant in accountants:
            got = accountant.delta(schedule, epsilon)
            assert got >= exact * (1 - 1e-6) - 1e-10, (accountant.name, seed, epsilon)
            if accountant.name == "pld":
                assert got <= exact * 1.001 + 1e-9, (seed, epsilon)
    for delta in DELTAS:
        for accountant in accountants:
            epsilon = accountant.epsilon(schedule, delta)
            exact = quadrature_delta(events, mu, epsilon)
            assert exact <= delta * (1 + 1e-6), (accountant.name, seed, delta)


@pytest.mark.parametrize("seed", range(6))
def test_no_bound_is_below_the_exact_delta(seed):
    check_small_schedule(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_no_bound_is_below_the_exact_delta_100_schedules(seed):
    check_small_schedule(seed)


@pytest.mark.parametrize(
    ("q", "sigma", "mu"), [(0.1, 1.0, 0.5), (0.5, 0.7, 1.0), (0.02, 2.0, 0.2), (0.9, 3.0, 0.3)]
)
def test_replace_one_against_quadrature(q, sigma, mu):
    """Sampled and plain Gaussians under replace-one; the plain one has twice the sensitivity."""
    step = ev.dp_sgd(q, sigma, 1)
    schedule = ev.multiset([step, ev.gaussian(2 / mu)])
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
        bound = accountant.delta(ev.multiset(ev.dp_sgd(q, sigma, 1)), epsilon)
        assert found <= bound + 2e-5  # the grid's own error


# -- binning -----------------------------------------------------------------------------------

WIDTH = 2e-3


def sampled_tails(event, turned):
    """Functions (P[loss > t], Q[loss > t]) of one mechanism, in closed form."""
    if isinstance(event, dp.GaussianDpEvent):
        q, sigma = 1.0, event.noise_multiplier
    else:
        q, sigma = event.sampling_probability, event.event.noise_multiplier

    def threshold(t):
        """x with ln((1-q) + q exp((2x - 1) / (2 s^2))) = t; -inf where the loss is always more."""
        rest = np.expm1(t) + q
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(rest > 0, sigma**2 * np.log(rest / q) + 0.5, -np.inf)

    def mixture_above(x):
        return (1 - q) * ndtr(-x / sigma) + q * ndtr((1 - x) / sigma)

    def plain_above(x):
        return ndtr(-x / sigma)

    if not turned:  # P is the mixture; its loss rises with x
        return lambda t: mixture_above(threshold(t))

    def below(t):  # P is N(0, s^2); its loss is minus the other one and falls with x
        return ndtr(threshold(-np.asarray(t)) / sigma)

    return below


def binned(event, turned):
    """(first index, masses of the loss rounded down to multiples of WIDTH), tails cut off."""
    above = sampled_tails(event, turned)
    edges = np.arange(-6000, 6001)
    mass = -np.diff(above(edges * WIDTH))
    kept = np.flatnonzero(mass > 1e-18)
    return edges[kept[0]], np.maximum(mass[kept[0] : kept[-1] + 1], 0.0)


def binned_delta(schedule, epsilon):
    """A lower bound of delta, by direct convolution."""
    best = 0.0
    for turned in (False, True):
        start, masses = 0, np.ones(1)
        for event, count in schedule.items():
            first, single = binned(event, turned)
            for _ in range(count):
                masses = np.convolve(masses, single)
                start += first
                kept = np.flatnonzero(masses > 1e-18)  # dropping mass lowers delta
                start += int(kept[0])
                masses = masses[kept[0] : kept[-1] + 1]
        losses = (start + np.arange(masses.size)) * WIDTH
        above = losses > epsilon
        best = max(best, float(-np.expm1(epsilon - losses[above]) @ masses[above]))
    return best


def random_long_schedule(rng):
    events = []
    for _ in range(rng.randint(2, 4)):
        step = ev.dp_sgd(10 ** rng.uniform(-2.5, -0.3), rng.uniform(0.8, 3), 1)
        events.append(dp.SelfComposedDpEvent(step, rng.randint(1, 6)))
    if rng.random() < 0.7:
        events.append(ev.gaussian(rng.uniform(2, 8), rng.randint(1, 3)))
    return ev.multiset(events)


def check_long_schedule(seed):
    schedule = random_long_schedule(random.Random(seed))
    accountants = [a for a in map(make_accountant, BOUNDS) if a.supports(schedule)]
    assert len(accountants) >= 4
    rounding = WIDTH * sum(schedule.values())
    for epsilon in (0.0, 0.5, 1.5, 3.0):
        low = binned_delta(schedule, epsilon)
        for accountant in accountants:
            assert accountant.delta(schedule, epsilon) >= low * (1 - 1e-9), (accountant.name, seed)
        # The binning loses at most `rounding` in epsilon, so it is not vacuous.
        if low > 1e-9 and epsilon > rounding:
            assert make_accountant("pld").delta(schedule, epsilon + rounding) <= low * 1.001 + 1e-10
    for delta in DELTAS:
        for accountant in accountants:
            epsilon = accountant.epsilon(schedule, delta)
            assert binned_delta(schedule, epsilon) <= delta * (1 + 1e-9), (accountant.name, seed)


@pytest.mark.parametrize("seed", range(3))
def test_no_bound_is_below_the_binned_lower_bound(seed):
    check_long_schedule(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_no_bound_is_below_the_binned_lower_bound_100_schedules(seed):
    check_long_schedule(seed)


@pytest.mark.parametrize("seed", range(3))
def test_the_clt_is_an_approximation_that_may_be_below(seed):
    """Why it is never called a bound: at small noise it is far below the exact cost."""
    step = ev.dp_sgd(0.01 * (seed + 1), 0.6, 1)
    schedule = ev.multiset(dp.SelfComposedDpEvent(step, 20))
    clt, pld = make_accountant("gdp-clt"), make_accountant("pld")
    assert clt.epsilon(schedule, 1e-5) < 0.7 * pld.epsilon(schedule, 1e-5)
    epsilon = clt.epsilon(schedule, 1e-5)
    assert binned_delta(schedule, epsilon) > 1e-5  # the oracle refutes it


# -- the reference table -----------------------------------------------------------------------

RATE, STEPS, DELTA = 256 / 60000, 1000, 1e-5
TABLE = [  # target, then for RDP, GDP-CLT, PRV: noise multiplier, true epsilon; PLD's noise
    (0.3, (1.9141, 0.260), (1.6650, 0.313), (1.7627, 0.290), (1.7171, 0.300)),
    (1.0, (1.0419, 0.667), (0.7910, 1.42), (0.8856, 0.989), (0.8823, 1.000)),
    (3.0, (0.6953, 2.26), (0.5439, 5.35), (0.6435, 2.99), (0.6429, 3.00)),
    (8.0, (0.5116, 6.59), (0.4457, 10.55), (0.4835, 7.99), (0.4834, 7.99)),
]


def cost(accountant, noise):
    return make_accountant(accountant).epsilon(ev.multiset(ev.dp_sgd(RATE, noise, STEPS)), DELTA)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"epsilon={row[0]}")
def test_reference_table(row):
    target, rdp, clt, prv, pld = row
    for noise, true in (rdp, clt, prv, pld):
        printed = 0.0005 if true < 5 else 0.005  # half of the last digit, at least
        assert cost("pld", noise) == pytest.approx(true, rel=0.005, abs=printed)
    assert cost("pld", pld[0]) == pytest.approx(target, rel=0.005)
    assert cost("rdp", rdp[0]) == pytest.approx(target, rel=0.01)
    assert cost("prv", prv[0]) == pytest.approx(target, rel=0.01)
    assert cost("gdp-clt", clt[0]) == pytest.approx(target, rel=0.01)


def test_the_reference_orders_the_accountants():
    """At one noise: the CLT below PLD, PLD below PRV's upper end and RDP and the dominating mu."""
    values = {name: cost(name, 0.8823) for name in ("gdp-clt", *BOUNDS) if name != "gdp-exact"}
    assert values["gdp-clt"] < values["pld"]
    assert all(values[name] > values["pld"] for name in ("prv", "rdp", "gdp-dominating"))
