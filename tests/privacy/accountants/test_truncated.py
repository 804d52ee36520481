"""A truncated Poisson sample: what it keeps, and what a Gaussian on it costs."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from dp_accounting import dp_event as dp
from scipy import stats
from scipy.special import ndtr

from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.accountants.losses.truncated import kept_probabilities
from privacy.calibration import calibrate_noise_multiplier
from privacy.copies import UnknownCopies, events_of_copies
from privacy.events.constructors import dp_sgd, truncated_sgd
from privacy.guarantee import Relation
from privacy.mechanisms.sampling import poisson_sample, truncated_poisson_sample
from privacy.randomness import generator


def test_a_sample_that_fits_is_the_poisson_sample() -> None:
    for seed in range(50):
        whole = poisson_sample(40, 0.2, generator(seed))
        kept = truncated_poisson_sample(40, 0.2, 8, generator(seed))
        assert set(kept) <= set(whole)
        assert len(kept) == min(8, len(whole))
        assert list(kept) == sorted(kept)
    assert len(truncated_poisson_sample(0, 0.5, 3, generator(1))) == 0
    with pytest.raises(ValueError, match="most=0"):
        truncated_poisson_sample(5, 0.5, 0, generator(1))


def test_which_records_are_kept_is_uniform() -> None:
    """Each record is kept equally often, and each pair: a chi-squared test over 40,000 samples."""
    n, rate, most, repeats = 6, 0.7, 3, 40_000
    counts: Counter[tuple[int, ...]] = Counter()
    rng = np.random.default_rng(3)
    for _ in range(repeats):
        counts[tuple(truncated_poisson_sample(n, rate, most, rng))] += 1
    full = [counts[key] for key in counts if len(key) == most]
    assert len(full) == math.comb(n, most)
    assert stats.chisquare(full).pvalue > 1e-6
    for size in range(most):
        expected = repeats * stats.binom.pmf(size, n, rate)
        seen = sum(count for key, count in counts.items() if len(key) == size)
        assert abs(seen - expected) < 6 * math.sqrt(expected + 1)


def kept_by_hand(n: int, rate: float, most: int) -> dict[int, tuple[float, float]]:
    """By |R|: (probability, probability that the first record is kept given R), over all samples and cuts."""
    found: dict[int, list[float]] = {}
    for drawn in product((0, 1), repeat=n):
        members = [i for i, each in enumerate(drawn) if each]
        weight = rate ** len(members) * (1 - rate) ** (n - len(members))
        size = min(most, len(members))
        inside = size / len(members) if 0 in members else 0.0
        for present, share in ((1, inside), (0, 1 - inside)):
            others = size - present
            if weight * share > 0:
                entry = found.setdefault(others, [0.0, 0.0])
                entry[0] += weight * share
                entry[1] += weight * share * present
    return {size: (whole, part / whole) for size, (whole, part) in found.items()}


@pytest.mark.parametrize(
    ("n", "rate", "most"),
    [(5, 0.3, 2), (7, 0.6, 3), (4, 0.5, 4), (6, 0.2, 1), (5, 1.0, 2), (3, 0.4, 9)],
)
def test_probabilities_are_those_of_all_samples(n: int, rate: float, most: int) -> None:
    by_hand = kept_by_hand(n, rate, most)
    few = sum(weight for size, (weight, _) in by_hand.items() if size <= most - 2)
    cases = kept_probabilities(n, rate, most)
    expected = []
    if few > 0:
        assert all(p == pytest.approx(rate) for size, (_, p) in by_hand.items() if size <= most - 2)
        expected.append((few, rate))
    if most - 1 in by_hand:
        expected.append(by_hand[most - 1])
    assert len(cases) == len(expected)
    for got, wanted in zip(cases, expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-9)
    for size, (_, p) in by_hand.items():
        assert size < most or p == 0


def exact_delta(n: int, rate: float, most: int, noise: float, epsilon: float) -> float:
    """Delta of one step for the worst data (the others add nothing, x adds 1), by numerical integration.

    There the outputs are mixtures of N(0) and N(1): x is kept with probability E[min(most, K)] / n.
    """
    sizes = np.arange(n + 1)
    kept = float(np.minimum(sizes, most) @ stats.binom.pmf(sizes, n, rate)) / n
    x = np.linspace(-14 * noise, 14 * noise + 1, 400_001)
    null, shifted = stats.norm.pdf(x, 0, noise), stats.norm.pdf(x, 1, noise)
    with_x = (1 - kept) * null + kept * shifted
    both = (
        np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), x)
        for p, q in ((with_x, null), (null, with_x))
    )
    return max(float(each) for each in both)


def shifted_delta(n: int, rate: float, most: int, noise: float, epsilon: float) -> float:
    """Delta for another worst case: the other records add 4 each, far apart against the noise, so that the output
    tells how many of them were kept."""
    cases = dict(kept_by_hand(n, rate, most))
    total = np.zeros(2)
    for weight, p in cases.values():
        total += weight * np.array(
            [max(one_delta(p, noise, epsilon, direction), 0.0) for direction in ("remove", "add")]
        )
    return float(total.max())


def one_delta(p: float, noise: float, epsilon: float, direction: str) -> float:
    """Delta of the pair (1-p) N(0) + p N(1) and N(0), in closed form."""
    if p == 0:
        return 0.0
    growth = math.exp(epsilon)
    if direction == "remove":
        ratio = 1 + (growth - 1) / p
        edge = 0.5 + noise**2 * math.log(ratio)
        return float(
            (1 - p - growth) * (1 - ndtr(edge / noise)) + p * (1 - ndtr((edge - 1) / noise))
        )
    ratio = 1 - (1 - 1 / growth) / p
    if ratio <= 0:
        return 0.0
    edge = 0.5 + noise**2 * math.log(ratio)
    return float(
        ndtr(edge / noise) * (1 - growth * (1 - p)) - growth * p * ndtr((edge - 1) / noise)
    )


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 1.0, 2.0])
@pytest.mark.parametrize(
    ("n", "rate", "most", "noise"), [(8, 0.4, 3, 0.8), (8, 0.5, 6, 1.2), (6, 0.2, 2, 0.6)]
)
def test_one_step_costs_what_its_worst_data_cost(
    n: int, rate: float, most: int, noise: float, epsilon: float
) -> None:
    """Never below any data's delta; where the others are told apart it is reached."""
    accountant = make_accountant("pld", Relation.ZERO_OUT)
    stated = accountant.delta(Counter({truncated_sgd(n, rate, most, noise): 1}), epsilon)
    told_apart = shifted_delta(n, rate, most, noise, epsilon)
    assert stated >= exact_delta(n, rate, most, noise, epsilon) - 1e-9
    assert stated >= told_apart * (1 - 1e-9)
    assert stated == pytest.approx(told_apart, rel=2e-3, abs=1e-9)


def test_monte_carlo_of_a_step_that_cuts() -> None:
    """The real sampler and real noise: x adds 1, the others add -1 each; a threshold test at epsilon 0.5."""
    n, rate, most, noise, epsilon, repeats = 5, 0.6, 2, 0.7, 0.5, 60_000
    rng = np.random.default_rng(11)
    outputs = np.zeros((2, repeats))
    for place in range(repeats):
        kept = truncated_poisson_sample(n, rate, most, rng)
        others = -1.0 * np.sum(kept != 0)
        noises = rng.standard_normal(2) * noise
        outputs[0, place] = others + float(0 in kept) + noises[0]
        outputs[1, place] = others + noises[1]
    stated = make_accountant("pld", Relation.ZERO_OUT).delta(
        Counter({truncated_sgd(n, rate, most, noise): 1}), epsilon
    )
    for threshold in np.linspace(-3, 3, 25):
        with_x, without = (outputs > threshold).mean(axis=1)
        for p, q in ((with_x, without), (1 - without, 1 - with_x), (without, with_x)):
            assert p - math.exp(epsilon) * q <= stated + 5 * (1 + math.exp(epsilon)) / repeats**0.5


def test_a_wide_cut_costs_what_poisson_sampling_costs() -> None:
    accountant = make_accountant("pld", Relation.ZERO_OUT)
    rate, steps, noise, delta = 64 / 2000, 200, 0.9, 1e-5
    poisson = accountant.epsilon(Counter({dp_sgd(rate, noise, 1): steps}), delta)
    for most, least, largest in ((64, 1.2, 3.0), (96, 1.0, 1.001), (2000, 1.0, 1.0001)):
        cut = accountant.epsilon(Counter({truncated_sgd(2000, rate, most, noise): steps}), delta)
        assert least * (1 - 1e-6) <= cut / poisson <= largest, (most, cut, poisson)


def test_adding_a_record_costs_at_least_as_much_by_dp_accounting() -> None:
    """Under add-or-remove-one a record displaces another: dp_accounting's factory, never below zero-out here."""
    events = Counter({truncated_sgd(500, 0.1, 60, 1.0): 30})
    zero_out = make_accountant("pld", Relation.ZERO_OUT).epsilon(events, 1e-5)
    added = make_accountant("pld", Relation.ADD_OR_REMOVE_ONE).epsilon(events, 1e-5)
    assert zero_out <= added * (1 + 1e-3)


@pytest.mark.parametrize("name", ["rdp", "gdp-exact", "gdp-clt"])
def test_other_accountants_refuse_by_name(name: str) -> None:
    accountant = make_accountant(name, Relation.ZERO_OUT)
    with pytest.raises(UnsupportedEvent, match="TruncatedSubsampledGaussian"):
        accountant.epsilon(Counter({truncated_sgd(500, 0.1, 60, 1.0): 3}), 1e-5)


def test_calibration_meets_the_target_with_the_truncated_event() -> None:
    rate, steps = 16 / 400, 40
    found = calibrate_noise_multiplier(
        epsilon=2.0, delta=1e-5, sampling_rate=rate, steps=steps, truncated=(400, 24)
    )
    event = dp.TruncatedSubsampledGaussianDpEvent(400, rate, 24, found.noise_multiplier)
    cost = make_accountant("pld", Relation.ZERO_OUT).epsilon(Counter({event: steps}), 1e-5)
    assert 2.0 * (1 - 2e-3) <= cost <= 2.0


def test_the_null_record_takes_a_place_that_is_free_without_it() -> None:
    """So data with it are not distributed as data without it, and no proof for removal serves zero-out here."""
    draws = 4000
    rng = np.random.default_rng(1)

    def kept(size: int) -> float:
        """How often record 0 is kept."""
        found = [0 in truncated_poisson_sample(size, 1.0, 2, rng) for _ in range(draws)]
        return float(np.mean(found))

    assert kept(4) == pytest.approx(1 / 2, abs=0.03), "record 3 is the null record"
    assert kept(3) == pytest.approx(2 / 3, abs=0.03), "without it"


def test_each_relation_has_its_own_pair() -> None:
    """All are drawn and one is kept: zero-out changes the sum in a tenth of the samples, removal swaps two vectors."""
    events = Counter({truncated_sgd(10, 1.0, 1, 2.0): 1})
    whole = Counter({dp.GaussianDpEvent(2.0): 1})
    zero_out = make_accountant("pld", Relation.ZERO_OUT)
    removed = make_accountant("pld", Relation.ADD_OR_REMOVE_ONE)
    for epsilon in (0.0, 0.2, 0.5):
        expected = zero_out.delta(whole, epsilon) / 10
        assert zero_out.delta(events, epsilon) == pytest.approx(expected, rel=1e-3)
    # Neither bound serves the other relation: the two curves cross.
    assert removed.delta(events, 0.0) > 1.1 * zero_out.delta(events, 0.0)
    assert removed.delta(events, 0.5) < 0.9 * zero_out.delta(events, 0.5)


def test_copies_are_refused_by_name() -> None:
    with pytest.raises(UnknownCopies, match="TruncatedSubsampledGaussian"):
        events_of_copies({truncated_sgd(10, 0.5, 6, 1.0): 1}, 2)
