"""Privacy loss of scalar noise: against integration, brute-force binning, Monte Carlo; never below."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from dp_accounting import dp_event as dp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.accountants.gaussian_curve import gaussian_delta, gaussian_epsilon
from privacy.accountants.losses.distribution import LossDistribution, compose
from privacy.accountants.losses.scalar import scalar_losses
from privacy.events import constructors as ev
from privacy.events.multiset import is_private, multiset
from privacy.events.serialization import UnknownEvent, canonical, event_from_json, event_to_json
from privacy.guarantee import Relation
from privacy.mechanisms.scalar_noise import GaussianNoise, LaplaceNoise, ScalarNoise
from privacy.randomness import generator
from tests.support.scalar_noise import NOISES, brute_force_epsilon

EPSILONS = np.array([0.0, 0.01, 0.05, 0.2, 0.5, 1.0, 2.0])


def composed(parts: tuple[LossDistribution, ...], count: int) -> list[LossDistribution]:
    found = [compose([(part, count)]) for part in parts]
    assert all(part is not None for part in found)
    return [part for part in found if part is not None]


def delta_by_integration(noise: ScalarNoise, rate: float, epsilon: float, add: bool) -> float:
    """The hockey-stick divergence as an integral of densities; accurate, and slow."""

    def gap(x: float) -> float:
        zero = math.exp(float(noise.log_density(x)))
        one = math.exp(float(noise.log_density(x - 1)))
        mixture = (1 - rate) * zero + rate * one
        first, second = (zero, mixture) if add else (mixture, zero)
        return max(0.0, first - math.exp(epsilon) * second)

    end = (1e4 if noise.shape == "log-convex" else 30) * noise.width + 2
    breaks = noise.breaks(end)
    around = noise.width * 2.0 ** np.arange(-12, 14)
    cuts = {0.5, *(s * b + o for b in [*breaks, *around] for s in (1, -1) for o in (0, 1))}
    inside = sorted({-end, end, 0.0, 1.0, *(float(c) for c in cuts if abs(c) < end)})
    return math.fsum(
        quad(gap, a, b, epsabs=1e-12, limit=200)[0] for a, b in itertools.pairwise(inside)
    )


@pytest.mark.parametrize("noise", NOISES, ids=repr)
@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_delta_of_one_release_against_integration(noise: ScalarNoise, rate: float) -> None:
    parts = scalar_losses(noise, rate, 1.0, 1e-4)
    floors = scalar_losses(noise, rate, 1.0, 1e-4, optimistic=True)
    assert len(parts) == (1 if rate == 1 else 2)
    for add, (part, floor) in enumerate(zip(parts, floors, strict=True)):
        assert part.probs.sum() + part.infinity == pytest.approx(1, abs=1e-12)
        for epsilon in EPSILONS * rate:
            truth = delta_by_integration(noise, rate, float(epsilon), bool(add))
            found = float(part.delta(epsilon)[0])
            assert found >= truth * (1 - 1e-7) - 1e-11
            assert found <= truth * (1 + 1e-4) + 5e-7
            assert float(floor.delta(epsilon)[0]) <= truth + 1e-8


@pytest.mark.parametrize("noise", NOISES, ids=repr)
@pytest.mark.parametrize(("rate", "count"), [(1.0, 1), (1.0, 8), (0.05, 1), (0.05, 30)])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_epsilon_against_brute_force_binning(
    noise: ScalarNoise, rate: float, count: int, delta: float
) -> None:
    """Never below the bins that round down, within 0.5 % of the bins that round up."""
    event = ev.scalar_noise(noise, count, rate)
    found = make_accountant("pld").epsilon({event: 1}, delta)
    low, high = brute_force_epsilon(noise, rate, count, delta)
    assert low - 1e-9 <= found <= max(1.005 * high, high + 1e-6)
    assert high - low <= max(0.02 * high, 2e-3)  # the two bins say something


@pytest.mark.parametrize("noise", NOISES, ids=repr)
@pytest.mark.parametrize(("rate", "count"), [(1.0, 3), (0.2, 8)])
def test_delta_against_monte_carlo(noise: ScalarNoise, rate: float, count: int) -> None:
    """The mean of (1 - exp(eps - loss))+ over real samples, both directions, within 5 errors."""
    rng = generator(11, "monte carlo", noise.family)
    size = 50_000
    for add in (False, True):
        loss = np.zeros(size)
        for _ in range(count):
            x = noise.sample(size, rng)
            if not add:
                x = x + (rng.random(size) < rate)
            ratio = noise.log_density(x - 1) - noise.log_density(x)
            loss += np.log1p(rate * np.expm1(ratio)) * (-1 if add else 1)
        parts = composed(scalar_losses(noise, rate, 1.0, 1e-4), count)
        part = parts[-1 if add else 0]
        for epsilon in (0.0, 0.1 * rate, 0.5 * rate, rate):
            gains = np.maximum(-np.expm1(epsilon - loss), 0)
            error = 5 * gains.std() / math.sqrt(size) + 1e-5
            assert float(part.delta(epsilon)[0]) == pytest.approx(gains.mean(), abs=error)


@pytest.mark.parametrize("delta", [1e-3, 1e-8, 1e-12])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 5.0, 40.0])
def test_gaussian_against_the_formula(sigma: float, delta: float) -> None:
    (part,) = scalar_losses(GaussianNoise(sigma), 1.0, 1.0, 1e-5 if sigma > 10 else 1e-4)
    for epsilon in (0.0, 0.5 / sigma, 1 / sigma, 2 / sigma):
        truth = gaussian_delta(1 / sigma, epsilon)
        assert truth <= float(part.delta(epsilon)[0]) <= truth * (1 + 1e-5) + 1e-15
    exact = gaussian_epsilon(1 / sigma, delta)
    assert exact * (1 - 1e-9) <= part.epsilon(delta) <= exact * (1 + 1e-5) + 1e-6


@pytest.mark.parametrize("delta", [0.0, 1e-12, 1e-6, 0.01])
def test_laplace_against_the_formula(delta: float) -> None:
    """delta(eps) = 1 - exp((eps - 1/b) / 2), so eps = 1/b + 2 ln(1 - delta)."""
    for scale in (0.2, 1.0, 17.0):
        (part,) = scalar_losses(LaplaceNoise(scale), 1.0, 1.0, 1e-4)
        exact = max(0.0, 1 / scale + 2 * math.log1p(-delta))
        assert exact <= part.epsilon(delta) + 1e-12
        assert part.epsilon(delta) <= exact + 1.001e-4


@given(
    st.sampled_from(NOISES),
    st.floats(0.02, 50),
    st.sampled_from([1.0, 0.3, 0.01]),
    st.sampled_from([1e-2, 1e-3]),
)
@settings(max_examples=40, deadline=None)
def test_a_finer_interval_never_costs_more_and_both_masses_are_kept(
    noise: ScalarNoise, factor: float, rate: float, interval: float
) -> None:
    scaled = noise.scaled(factor / noise.width)
    coarse = scalar_losses(scaled, rate, 1.0, 4 * interval)
    fine = scalar_losses(scaled, rate, 1.0, interval)
    for c, f in zip(coarse, fine, strict=True):
        # Q has mass E_P[exp(-loss)] on the finite losses: at most 1.
        for part in (c, f):
            assert part.probs.min() >= 0
            with np.errstate(over="ignore"):
                other = part.probs[part.probs > 0] @ np.exp(-part.losses[part.probs > 0])
            assert other <= 1 + 1e-7
        # On the coarse grid the fine one is exact but for cells that lie across one of its losses.
        at = np.maximum(c.losses, 0.0)[:: 1 + c.losses.size // 1000]
        assert np.all(f.delta(at) <= c.delta(at) * (1 + 1e-9) + interval**2)


@given(st.sampled_from(NOISES), st.floats(0.2, 20), st.floats(0.01, 1.0))
@settings(max_examples=25, deadline=None)
def test_more_noise_costs_less_and_a_smaller_change_too(
    noise: ScalarNoise, factor: float, change: float
) -> None:
    scaled = noise.scaled(factor / noise.width)
    (full,) = scalar_losses(scaled, 1.0, 1.0, 1e-3)
    (part,) = scalar_losses(scaled, 1.0, change, 1e-3)
    at = np.arange(0, 3000, 7) * 1e-3
    assert np.all(part.delta(at) <= full.delta(at) + 1e-6)


def test_gaussian_and_laplace_events_cost_what_dp_accountings_own_cost() -> None:
    for name, delta in itertools.product(("pld", "rdp", "gdp-exact"), (1e-6, 1e-10)):
        accountant = make_accountant(name)
        for q in (1.0, 0.02):
            own = ev.scalar_noise(GaussianNoise(2.0), 5, q)
            other = ev.dp_sgd(q, 2.0, 5)
            if not accountant.supports({other: 1}):
                continue
            assert accountant.epsilon({own: 1}, delta) == accountant.epsilon({other: 1}, delta)
    pld = make_accountant("pld")
    own = pld.epsilon({ev.scalar_noise(LaplaceNoise(2.0), 5): 1}, 1e-6)
    assert own == pld.epsilon({dp.LaplaceDpEvent(2.0): 5}, 1e-6)


def test_composes_with_training_in_one_ledger() -> None:
    for noise in NOISES:
        scalar, training = ev.scalar_noise(noise, 4), ev.dp_sgd(0.02, 1.2, 200)
        pld = make_accountant("pld")
        apart = pld.epsilon({scalar: 1}, 5e-6) + pld.epsilon({training: 1}, 5e-6)
        both = pld.epsilon({scalar: 1, training: 1}, 1e-5)
        assert max(pld.epsilon({e: 1}, 1e-5) for e in (scalar, training)) < both <= apart + 1e-6
        mu = make_accountant("gdp-dominating").mu({scalar: 1, training: 1})
        assert mu is not None
        assert gaussian_epsilon(mu, 1e-5) >= both - 1e-9


def test_replace_one_doubles_the_change_and_refuses_sampling() -> None:
    replace = make_accountant("pld", Relation.REPLACE_ONE)
    for noise in NOISES:
        doubled = make_accountant("pld").epsilon({ev.scalar_noise(noise.scaled(0.5)): 1}, 1e-6)
        assert replace.epsilon({ev.scalar_noise(noise): 1}, 1e-6) == pytest.approx(doubled, 1e-3)
        if noise.family != "gaussian":
            with pytest.raises(UnsupportedEvent, match="add-or-remove-one only"):
                replace.epsilon({ev.scalar_noise(noise, 3, 0.1): 1}, 1e-6)


def test_events_of_scalar_noise_as_json_and_refusals() -> None:
    for noise in NOISES:
        event = ev.scalar_noise(noise, 3, 0.25)
        text = event_to_json(event)
        assert event_from_json(text) == canonical(event)
        assert '"kind":"ScalarNoise"' in text
        assert is_private(event)
        assert multiset(event) == Counter({event.event: 3})
    for parameters, message in [
        ('[["scale",0]]', "scale=0.0"),
        ('[["scale",1],["scale",1]]', "each name once"),
        ('[["sigma",1]]', "Expected the parameters"),
        ("[1]", "pairs"),
    ]:
        text = f'{{"kind":"ScalarNoise","family":"laplace","parameters":{parameters}}}'
        with pytest.raises(UnknownEvent, match=message):
            event_from_json(text)
    with pytest.raises(ValueError, match="sampling_rate=0"):
        ev.scalar_noise(NOISES[0], 1, 0.0)
    with pytest.raises(ValueError, match="count=-1"):
        ev.scalar_noise(NOISES[0], -1)
