"""Shares: their distribution and that of their sum, their size, and the views of a sum."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.accountants import make_accountant
from privacy.calibration import calibrate_noise_multiplier
from privacy.events import constructors as ev
from privacy.events.kinds import DiscreteGaussianSumDpEvent
from privacy.events.views import MOST_COLLUDING, distributed_discrete_gaussian
from privacy.ledger.ledger import LedgerEntry, composed
from privacy.randomness import generator
from privacy.secure_sum import bound, grid, ring
from privacy.secure_sum.shares import draw_share, honest_shares, plan_shares, share_sigma

SURE = 1e-6  # probability that a right sampler fails a test


def exact(sigma, shares):
    """(values, probabilities) of the sum of shares."""
    x = np.arange(-math.ceil(10 * sigma), math.ceil(10 * sigma) + 1)
    one = np.exp(-((x / sigma) ** 2) / 2)
    one /= one.sum()
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    return np.arange(total.size) - total.size // 2, total


def fit(sample, sigma, shares=1):
    """p-value of the chi-square test, with tails pooled to cells of at least 10 expected."""
    x, p = exact(sigma, shares)
    inner = np.flatnonzero(p * sample.size >= 10)
    low, high = x[inner[0]], x[inner[-1]]
    counts = np.bincount(np.clip(sample, low, high) - low, minlength=high - low + 1)
    probs = p[inner[0] : inner[-1] + 1].copy()
    probs[0] += p[: inner[0]].sum()
    probs[-1] += p[inner[-1] + 1 :].sum()
    return stats.chisquare(counts, probs / probs.sum() * sample.size).pvalue


@pytest.mark.parametrize("sigma", [1, 4, 23])
def test_a_share_is_a_discrete_gaussian(sigma):
    sample = draw_share(100_000, sigma, generator(3, "share", sigma))
    assert sample.dtype == np.int64
    assert fit(sample, sigma) > SURE
    for off in (0.97, 1.03):
        assert fit(sample, sigma * off) < SURE  # the test has power


def test_a_sum_of_shares_has_the_distribution_that_the_bound_is_of():
    parts = [draw_share(50_000, 4, generator(4, "silo", i)) for i in range(5)]
    assert fit(sum(parts), 4, 5) > SURE
    assert fit(sum(parts[:4]), 4, 5) < SURE


def test_a_large_share_is_drawn_fast_from_secret_bytes():
    for sigma in (2**16, 2**25):
        started = time.process_time()
        sample = draw_share(100_000, sigma, generator(None))
        assert time.process_time() - started < 3.0
        assert stats.kstest(sample / sigma, "norm").pvalue > SURE
        assert len(set((sample % 64).tolist())) == 64  # no coarser than the grid


@pytest.mark.parametrize(("size", "sigma"), [(-1, 4), (True, 4), (3, 0), (3, 4.5), (3, 2**25 + 1)])
def test_a_share_out_of_range_is_refused(size, sigma):
    with pytest.raises(ValueError, match="Expected a whole"):
        draw_share(size, sigma, generator(1))


def missing_by_closed_form(honest, t):
    """`most_missing` by its closed form where that is proven, by its definition over pairs (e, x) elsewhere."""
    if honest >= 3 * t:
        return t + max(s for s in range(t + 1) if s * (honest - t - s) <= t * t) if t else 0
    return max(
        e + x
        for e in range(t + 1)
        for x in range(honest - e)
        if x * (honest - t) <= (honest - e - x) * min(x, t - e) + (e + x) * min(x, t)
    )


@given(
    st.floats(0.01, 50),
    st.floats(1, 1e5),
    st.integers(1, 40),
    st.integers(0, 10),
    st.integers(0, 10),
)
def test_honest_shares_suffice_and_no_smaller_share_does(noise, sensitivity, silos, t, m):
    if 2 * t >= silos - m:
        with pytest.raises(ValueError, match=r"2 \* dropouts < silos - colluding"):
            honest_shares(silos, t, m)
        return
    honest = honest_shares(silos, t, m)
    sigma = share_sigma(noise, sensitivity, honest)
    survivors = silos - m - missing_by_closed_form(silos - m, t)  # whatever honest_shares says
    assert sigma * math.sqrt(survivors) / sensitivity >= noise
    assert bound.noise_multiplier(sigma, survivors, sensitivity) >= noise
    assert sigma == 4 or bound.noise_multiplier(sigma - 1, survivors, sensitivity) < noise
    for more_t, more_m in ((t + 1, m), (t, m + 1)):  # larger shares
        if 2 * more_t < silos - more_m:
            more = honest_shares(silos, more_t, more_m)
            assert share_sigma(noise, sensitivity, more) >= sigma


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: honest_shares(4, -1, 0),
        lambda: honest_shares(4, 0, -1),
        lambda: honest_shares(4, 2, 0),
        lambda: honest_shares(5, 2, 1),
        lambda: honest_shares(4, 0, 4),
        lambda: share_sigma(0.0, 1.0, 2),
        lambda: share_sigma(math.inf, 1.0, 2),
        lambda: share_sigma(1.0, 0.0, 2),
        lambda: share_sigma(1.0, 2.0**30, 1),
        lambda: plan_shares(1.0, 1.0, 10, 4, overhead=0.0),
        lambda: plan_shares(1.0, 0.0, 10, 4),
        lambda: plan_shares(1.0, 1.0, 0, 4),
        lambda: plan_shares(1.0, 1.0, 10**11, 9000, bits=32),
        lambda: plan_shares(1.0, 1.0, 10, 4, bits=33),
    ],
)
def test_bad_input_is_one_clear_error(wrong):
    with pytest.raises(ValueError, match="Expected"):
        wrong()


def test_views_count_the_shares_that_each_adversary_does_not_know():
    views = distributed_discrete_gaussian(
        100, 10, 50.0, dropouts=2, colluding=[1, 3, 6, 9], sampling_rate=0.1
    )
    shares = {who: event.event.shares for who, event in views.items()}
    assert shares == {
        "outsider": 8, "sum-only": 8, "server": 1,
        "sum-only:1": 7, "sum-only:3": 4, "sum-only:6": 1, "sum-only:9": 1,  # 2 t < n - m no longer: one's own
        "colluding:1": 1, "colluding:3": 1, "colluding:6": 1, "colluding:9": 1,
    }  # fmt: skip
    assert {event.sampling_probability for event in views.values()} == {0.1}
    assert all(
        e.event == DiscreteGaussianSumDpEvent(100.0, shares[w], 50.0) for w, e in views.items()
    )


def test_too_many_views_are_refused():
    with pytest.raises(ValueError, match=f"at most {MOST_COLLUDING}"):
        distributed_discrete_gaussian(4, 100, 50, colluding=range(1, MOST_COLLUDING + 2))


def test_epsilon_grows_with_what_the_adversary_knows_in_a_ledger():
    def epsilon(t, who):
        views = distributed_discrete_gaussian(
            400, 8, 1000, dropouts=t, colluding=[1, 2, 3], count=50, sampling_rate=0.05
        )
        row = LedgerEntry("run", "server", "client", "train", 0, "round-0", views)
        return make_accountant("pld").epsilon(composed([row], who), 1e-5)

    found = [epsilon(0, f"sum-only{who}") for who in ("", ":1", ":2", ":3")]
    assert found == sorted(found)
    assert len(set(found)) == 4
    assert epsilon(0, "outsider") == found[0]
    assert epsilon(1, "sum-only") == found[1] < epsilon(1, "sum-only:2") == found[3]
    assert epsilon(0, "server") == epsilon(0, "colluding:3") > found[3]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(("t", "m"), [(0, 0), (1, 2)])
def test_a_whole_sum_at_a_calibrated_target(bits, t, m):
    """Calibrate, plan, round, add shares, sum, decode: the target holds, and the noise is what it was calibrated to."""
    silos, d, clip, rate, steps = 6, 3000, 0.7, 0.1, 40
    wanted = calibrate_noise_multiplier(
        epsilon=2.0, delta=1e-5, sampling_rate=rate, steps=steps
    ).noise_multiplier
    plan = plan_shares(wanted, clip, d, silos, dropouts=t, colluding=m, bits=bits)
    views = distributed_discrete_gaussian(
        plan.sigma, silos, plan.sensitivity, dropouts=t, colluding=[m] if m else [], count=steps,
        sampling_rate=rate,
    )  # fmt: skip
    worst = views[f"sum-only:{m}" if m else "sum-only"]
    epsilon = make_accountant("pld").epsilon({worst: 1}, 1e-5)
    assert 1.97 < epsilon <= 2.0

    rng = np.random.default_rng(1)
    sums = [rng.normal(0, clip / math.sqrt(d), d).astype(np.float32) for _ in range(silos)]
    rounded = [grid.nearest(s, plan.exponent) for s in sums]
    parts = [
        ring.encode(x, draw_share(d, plan.sigma, generator(5, "silo", i)), plan.largest, bits)
        for i, x in enumerate(rounded)
    ]
    total = ring.decode(ring.add(parts), bits)
    noise = grid.to_real(total, plan.exponent) - np.sum(sums, axis=0, dtype=np.float64)
    expected = wanted * clip * math.sqrt(silos / (silos - t - m))
    assert np.std(noise) == pytest.approx(expected, rel=5 / math.sqrt(2 * d) + 0.011)
    assert ev.discrete_gaussian_sum(plan.sigma, plan.honest, plan.sensitivity, steps, rate) == worst
