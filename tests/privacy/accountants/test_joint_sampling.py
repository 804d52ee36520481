"""Several Gaussian mechanisms on one Poisson sample are accounted as the one that they amount to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import dp_event as dp
from dp_accounting.pld import pld_privacy_accountant
from dp_accounting.rdp import rdp_privacy_accountant
from hypothesis import given
from hypothesis import strategies as st

from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.events.constructors import dp_sgd, gaussian, no_guarantee, poisson_sampled
from privacy.events.multiset import is_private, multiset
from privacy.events.serialization import event_from_json, event_to_json

RATE = 0.1


def together(*noises: float) -> float:
    return sum(noise**-2 for noise in noises) ** -0.5


def exact_delta(noises: tuple[float, float], rate: float, epsilon: float, add: bool) -> float:
    """Hockey-stick divergence of the two releases of one sample, by integration over the plane.

    The record moves each release by 1 where it is sampled: the mixture is of *pairs*, since both
    releases see the same sample.
    """
    axis = np.arange(-10.0, 12.0, 0.011)
    density = np.exp(-(axis**2) / 2) / math.sqrt(2 * math.pi)
    moved = [np.exp(-((axis - 1 / noise) ** 2) / 2) / math.sqrt(2 * math.pi) for noise in noises]
    without = np.outer(density, density)
    with_it = (1 - rate) * without + rate * np.outer(moved[0], moved[1])
    p, q = (without, with_it) if add else (with_it, without)
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum() * (axis[1] - axis[0]) ** 2)


@pytest.mark.parametrize("noises", [(1.2 * 2**0.5, 1.2 * 2**0.5), (0.9, 2.0)])
@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.5])
def test_delta_is_that_of_the_pair_of_releases(noises: tuple[float, float], epsilon: float) -> None:
    """Against an integral over both releases, which knows nothing of the one that they amount to."""
    event = poisson_sampled(RATE, map(gaussian, noises))
    exact = max(exact_delta(noises, RATE, epsilon, add) for add in (False, True))
    assert exact > 1e-7
    found = make_accountant("pld").delta(multiset(event), epsilon)
    assert exact * (1 - 1e-4) <= found <= exact * 1.02
    # Each release amplified by itself, as if each had a sample of its own, is another thing.
    apart = make_accountant("pld").delta(
        multiset([dp_sgd(RATE, noise, 1) for noise in noises]), epsilon
    )
    assert abs(apart / exact - 1) > 0.05


@given(noises=st.lists(st.floats(0.1, 50), min_size=2, max_size=5), rate=st.floats(1e-4, 0.99))
def test_gaussians_on_one_sample_become_one(noises: list[float], rate: float) -> None:
    ((event, count),) = multiset({poisson_sampled(rate, map(gaussian, noises)): 3}).items()
    assert count == 3
    assert event.sampling_probability == rate
    assert event.event.noise_multiplier == pytest.approx(together(*noises), rel=1e-12)


def test_without_sampling_dp_accounting_says_the_same() -> None:
    """Composition of Gaussians is the Gaussian with the sum of the precisions, by both its accountants."""
    noises = (1.7, 2.9)
    one = dp.GaussianDpEvent(together(*noises))
    pair = dp.ComposedDpEvent([dp.GaussianDpEvent(noise) for noise in noises])
    for module, name in (
        (rdp_privacy_accountant.RdpAccountant, "rdp"),
        (pld_privacy_accountant.PLDAccountant, "pld"),
    ):
        first, second = (module().compose(event).get_epsilon(1e-6) for event in (pair, one))
        assert first == pytest.approx(second, rel=1e-4)
        ours = make_accountant(name)
        at_rate_1 = multiset(poisson_sampled(1.0, map(gaussian, noises)))
        assert ours.epsilon(at_rate_1, 1e-6) == pytest.approx(first, rel=1e-2)


@pytest.mark.parametrize("name", ["pld", "rdp", "gdp-dominating"])
def test_two_releases_with_root_two_noise_cost_one_step(name: str) -> None:
    noise, steps = 0.9, 40
    one = gaussian(noise * math.sqrt(2))
    accountant = make_accountant(name)
    pair = accountant.epsilon(multiset({poisson_sampled(RATE, (one, one)): steps}), 1e-5)
    plain = accountant.epsilon(multiset(dp_sgd(RATE, noise, steps)), 1e-5)
    assert pair == pytest.approx(plain, rel=1e-5)


def test_a_sample_with_a_bare_release_is_not_private() -> None:
    bare = poisson_sampled(RATE, (gaussian(1.0), no_guarantee("shown as it is")))
    silent = dp.PoissonSampledDpEvent(
        RATE, dp.ComposedDpEvent((gaussian(1.0), dp.GaussianDpEvent(0.0)))
    )
    for event in (bare, silent):
        assert not is_private(event)
        assert make_accountant("pld").epsilon(multiset(event), 1e-5) == math.inf
    mixed = poisson_sampled(RATE, (gaussian(1.0), dp.LaplaceDpEvent(1.0)))
    assert is_private(mixed)
    with pytest.raises(UnsupportedEvent):
        make_accountant("pld").epsilon(multiset(mixed), 1e-5)


def test_the_event_is_written_as_it_was() -> None:
    """The ledger keeps both releases; they become one where they are accounted."""
    event = poisson_sampled(RATE, (gaussian(1.0), gaussian(2.0)))
    assert event_from_json(event_to_json(event)) == event
    assert isinstance(event.event, dp.ComposedDpEvent)
    assert poisson_sampled(RATE, [gaussian(1.0)]) == dp_sgd(RATE, 1.0, 1)
    nested = dp.PoissonSampledDpEvent(RATE, dp.SelfComposedDpEvent(gaussian(2.0), 4))
    assert multiset(nested) == {dp_sgd(RATE, 1.0, 1): 1}


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_bad_rates_and_empty_samples_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"Expected 0 < sampling_rate <= 1"):
        poisson_sampled(rate, [gaussian(1.0)])
    with pytest.raises(ValueError, match=r"Expected at least one event"):
        poisson_sampled(0.5, [])
