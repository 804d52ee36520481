"""The discrete Gaussian: its distribution, exactly; its event; its cost by every accountant."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as dp_pld
from scipy import stats

from privacy.accountants import ACCOUNTANTS, UnsupportedEvent, make_accountant
from privacy.events import constructors as ev
from privacy.events.kinds import DiscreteGaussianDpEvent
from privacy.events.multiset import multiset
from privacy.events.serialization import UnknownEvent, event_from_json, event_to_json
from privacy.guarantee import Relation
from privacy.mechanisms.discrete_gaussian import add_discrete_gaussian, discrete_gaussian
from privacy.randomness import generator

SURE = 1e-6  # probability that a right sampler fails a test


def pmf(sigma, reach=None):
    """(values, exact probabilities)."""
    x = np.arange(-(reach or math.ceil(12 * sigma) + 2), (reach or math.ceil(12 * sigma) + 2) + 1)
    weights = np.exp(-((x / float(sigma)) ** 2) / 2)
    return x, weights / weights.sum()


def fit(sample, sigma):
    """p-value of the chi-square test, with tails pooled to cells of at least 10 expected."""
    x, p = pmf(sigma)
    expected = p * sample.size
    inner = np.flatnonzero(expected >= 10)
    low, high = x[inner[0]], x[inner[-1]]
    counts = np.bincount(np.clip(sample, low, high) - low, minlength=high - low + 1)
    probs = p[inner[0] : inner[-1] + 1].copy()
    probs[0] += p[: inner[0]].sum()
    probs[-1] += p[inner[-1] + 1 :].sum()
    return stats.chisquare(counts, probs * sample.size).pvalue


SIGMAS = [0.3, 0.7, Fraction(1), Fraction(5, 3), 3.7, 20, 20 * math.sqrt(2)]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_goodness_of_fit(sigma):
    sample = discrete_gaussian(100_000, sigma, generator(3, "fit", repr(sigma)))
    assert sample.dtype == np.int64
    assert fit(sample, sigma) > SURE


@pytest.mark.parametrize("sigma", [0.7, 3.7, 20])
def test_the_fit_has_power(sigma):
    """It sees a sigma that is 3 % off, and a negative zero that was not rejected."""
    for other in (0.97, 1.03):
        sample = discrete_gaussian(100_000, sigma * other, generator(4, repr(sigma), repr(other)))
        assert fit(sample, sigma) < SURE
    x, p = pmf(sigma)
    p = np.where(x == 0, 2 * p, p)
    assert fit(generator(5).choice(x, 100_000, p=p / p.sum()), sigma) < SURE


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.7])
def test_the_fit_sees_the_rounded_continuous_gaussian(sigma):
    rounded = np.rint(generator(7).normal(0, sigma, 100_000)).astype(np.int64)
    assert fit(rounded, sigma) < SURE


def test_samples_are_independent():
    sample = discrete_gaussian(100_000, 5, generator(8)).astype(float)
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(sample[:-lag], sample[lag:])[0, 1]) < 5 / math.sqrt(sample.size)


def test_any_source_of_bytes_will_do_and_a_seed_repeats():
    again = [discrete_gaussian(1000, 4.2, generator(1, "a")) for _ in range(2)]
    assert np.array_equal(*again)
    assert not np.array_equal(again[0], discrete_gaussian(1000, 4.2, generator(1, "b")))
    secret = discrete_gaussian(100_000, 4, generator(None))
    assert fit(secret, 4) > SURE


class Counted:
    """A source that counts; nothing but bytes may be asked of it."""

    def __init__(self):
        self.inner, self.bytes_drawn = generator(2), 0

    def bytes(self, length):
        self.bytes_drawn += length
        return self.inner.bytes(length)


def test_only_bytes_are_drawn():
    source = Counted()
    assert np.array_equal(
        discrete_gaussian(500, 3, source), discrete_gaussian(500, 3, generator(2))
    )
    assert source.bytes_drawn > 500


def test_numbers_beyond_64_bits_are_exact_too():
    """A float sigma is a fraction of some 100 bits squared: the slow way must agree in law."""
    short, long = Fraction(5, 2), Fraction(5, 2) + Fraction(1, 2**51)
    for sigma in (short, long):
        assert fit(discrete_gaussian(50_000, sigma, generator(9, repr(sigma))), 2.5) > SURE
    huge = discrete_gaussian(20_000, 2**39 + 0.5, generator(10)) / (2**39 + 0.5)
    assert stats.kstest(huge, "norm").pvalue > SURE


def test_thousands_in_well_under_a_second():
    started = time.process_time()
    discrete_gaussian(10_000, 20 * math.sqrt(2), generator(11))
    discrete_gaussian(10_000, 20, generator(11))
    assert time.process_time() - started < 1.0


def test_counts_stay_whole_and_keep_their_shape():
    counts = np.array([[3, 0, 7], [2**40, 1, 5]])
    noisy = add_discrete_gaussian(counts, 2, 1.5, generator(12))
    assert noisy.shape == counts.shape
    assert noisy.dtype == np.int64
    many = add_discrete_gaussian(np.full(100_000, 2, dtype=np.int32), 2, 1.5, generator(13)) - 2
    assert fit(many, 3.0) > SURE
    assert many.min() < -2, "negative counts are not clamped"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (([1.5], 1, 1.0), "counts"),
        (([True], 1, 1.0), "counts"),
        (([2**62], 1, 1.0), "counts"),
        (([1], 0, 1.0), "sensitivity"),
        (([1], 1.5, 1.0), "sensitivity"),
        (([1], 1, 0.0), "noise_multiplier"),
        (([1], 1, math.nan), "noise_multiplier"),
        (([1], 1, math.inf), "noise_multiplier"),
        (([1], 1, 1e-9), "sigma"),
        (([1], 1, 1e15), "sigma"),
    ],
)
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=name):
        add_discrete_gaussian(*arguments, generator(1))


# -- the event and its cost --------------------------------------------------------------------


def exact_deltas(sigma, shift, count, epsilons):
    """delta of `count` discrete Gaussians, by enumeration of their sum, at 40 digits.

    All have the same loss shift (shift - 2x) / (2 sigma^2): that of the whole depends on the sum of
    the x alone, whose distribution is a convolution.
    """
    mpmath.mp.dps = 40
    s = mpmath.mpf(sigma)
    reach = math.ceil(14 * sigma) + 2
    one = [mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * s * s)) for x in range(-reach, reach + 1)]
    total = mpmath.fsum(one)
    one = [w / total for w in one]
    sums = [mpmath.mpf(1)]
    for _ in range(count):
        new = [mpmath.mpf(0)] * (len(sums) + len(one) - 1)
        for i, a in enumerate(sums):
            for j, b in enumerate(one):
                new[i + j] += a * b
        sums = new
    found = []
    for epsilon in epsilons:
        delta = mpmath.mpf(0)
        for index, mass in enumerate(sums):
            x = index - count * reach
            loss = shift * (count * shift - 2 * x) / (2 * s * s)
            if loss > epsilon:
                delta += mass * (1 - mpmath.exp(epsilon - loss))
        found.append(float(delta))
    return found


@pytest.mark.parametrize(
    ("sigma", "shift", "count"), [(0.6, 1, 1), (1.3, 1, 3), (2.5, 2, 2), (4.0, 3, 1), (2.0, 1, 2)]
)
@pytest.mark.parametrize("relation", list(Relation))
def test_no_bound_is_below_the_exact_delta(sigma, shift, count, relation):
    events = multiset(ev.discrete_gaussian(sigma, shift, count))
    change = shift * (2 if relation is Relation.REPLACE_ONE else 1)
    epsilons = [0.0, 0.2, 1.0, 2.5, 6.0]
    exact = exact_deltas(sigma, change, count, epsilons)
    for name in ("pld", "rdp", "gdp-dominating"):
        accountant = make_accountant(name, relation)
        for epsilon, true in zip(epsilons, exact, strict=True):
            got = accountant.delta(events, epsilon)
            assert got >= true * (1 - 1e-12)
            if name == "pld":
                assert got <= true * 1.001 + 1e-13
        for delta in (1e-3, 1e-6):
            epsilon = accountant.epsilon(events, delta)
            assert exact_deltas(sigma, change, count, [epsilon])[0] <= delta * (1 + 1e-9)


@pytest.mark.parametrize(("sigma", "shift"), [(0.2, 1), (1.0, 2), (28.28, 1), (1000.0, 1)])
def test_pld_agrees_with_dp_accounting(sigma, shift):
    events = multiset(ev.discrete_gaussian(sigma, shift))
    reference = dp_pld.from_discrete_gaussian_mechanism(sigma, shift, use_connect_dots=True)
    ours = make_accountant("pld")
    for delta in (1e-3, 1e-5, 1e-8):
        assert ours.epsilon(events, delta) == pytest.approx(
            reference.get_epsilon_for_delta(delta), rel=2e-3, abs=1e-5
        )


def test_rdp_is_that_of_the_continuous_gaussian():
    for relation in Relation:
        accountant = make_accountant("rdp", relation)
        discrete = accountant.epsilon(multiset(ev.discrete_gaussian(6.0, 2, 4)), 1e-5)
        continuous = accountant.epsilon(multiset(ev.gaussian(3.0, 4)), 1e-5)
        assert discrete == pytest.approx(continuous, rel=1e-9)


def test_at_large_sigma_it_costs_what_the_continuous_one_costs():
    accountant = make_accountant("pld")
    discrete = accountant.epsilon(multiset(ev.discrete_gaussian(50.0, 1, 100)), 1e-5)
    continuous = accountant.epsilon(multiset(ev.gaussian(50.0, 100)), 1e-5)
    assert discrete == pytest.approx(continuous, rel=2e-3)


def test_accountants_without_a_proof_refuse_by_name():
    one = multiset(ev.discrete_gaussian(5.0))
    for name in ("gdp-exact", "gdp-clt"):
        with pytest.raises(UnsupportedEvent, match="DiscreteGaussian"):
            make_accountant(name).epsilon(one, 1e-5)
    sampled = multiset(ev.dp.PoissonSampledDpEvent(0.1, DiscreteGaussianDpEvent(5.0, 1)))
    for name in ACCOUNTANTS:
        with pytest.raises(UnsupportedEvent, match="PoissonSampled"):
            make_accountant(name).epsilon(sampled, 1e-5)
    with pytest.raises(UnsupportedEvent, match="sigma <= "):
        make_accountant("pld").epsilon(multiset(ev.discrete_gaussian(1e6)), 1e-5)
    assert make_accountant("rdp").epsilon(multiset(ev.discrete_gaussian(1e6)), 1e-5) < 1e-3


def test_no_noise_is_no_guarantee():
    assert make_accountant("pld").epsilon({DiscreteGaussianDpEvent(0.0, 1): 1}, 0.1) == math.inf


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0.0,), "sigma"), ((math.inf,), "sigma"), ((1.0, 0), "sensitivity"), ((1.0, 1, -1), "count")],
)
def test_bad_events(arguments, name):
    with pytest.raises(ValueError, match=name):
        ev.discrete_gaussian(*arguments)


def test_the_event_is_written_and_read():
    event = DiscreteGaussianDpEvent(28.284271247461902, 3)
    text = event_to_json(event)
    assert text == '{"kind":"DiscreteGaussian","sensitivity":3,"sigma":28.284271247461902}'
    assert event_from_json(text) == event
    for bad in ('"sensitivity":0,"sigma":1', '"sensitivity":1,"sigma":-1', '"sigma":1'):
        with pytest.raises(UnknownEvent):
            event_from_json('{"kind":"DiscreteGaussian",' + bad + "}")
