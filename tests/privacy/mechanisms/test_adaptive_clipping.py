"""Adaptive clipping: what sum and count cost together, the count's noise, and where the norm goes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd, gaussian, poisson_sampled
from privacy.events.multiset import multiset
from privacy.mechanisms.adaptive_clipping import (
    LARGEST,
    SMALLEST,
    centred_count,
    moved_clip,
    noisy_count,
    share_below,
    split,
)
from privacy.randomness import generator

SURE = 1e-6
lengths = st.lists(st.floats(0, 10) | st.just(math.inf) | st.just(math.nan), max_size=20)


@given(st.floats(0.05, 100), st.floats(1e-4, 0.9999))
def test_sum_and_count_are_one_mechanism_of_the_multiplier(z: float, share: float) -> None:
    """Theorem 1 of Andrew et al.: 1/z^2 = 1/z_sum^2 + 1/(2 s_b)^2, 2 s_b the count's multiplier."""
    found = split(z, share)
    assert 1 / found.vector**2 + 1 / found.count**2 == pytest.approx(1 / z**2, rel=1e-12)
    assert found.vector > z
    assert found.count > z
    # The papers' way round: z_sum from z and the count's noise.
    s_b = found.count / 2
    assert found.vector == pytest.approx((z**-2 - (2 * s_b) ** -2) ** -0.5, rel=1e-6)


@pytest.mark.parametrize("rate", [1.0, 0.05])
def test_the_events_of_sum_and_count_cost_what_one_costs(rate: float) -> None:
    found = split(1.3, 0.1)
    parts = poisson_sampled(rate, (gaussian(found.vector), gaussian(found.count)))
    one = dp_sgd(rate, 1.3, 1)
    for name in ("pld", "rdp"):
        accountant = make_accountant(name)
        both = accountant.epsilon(multiset({parts: 20}), 1e-6)
        assert both == pytest.approx(accountant.epsilon(multiset({one: 20}), 1e-6), rel=1e-6)
        bare = poisson_sampled(rate, (gaussian(found.vector),))
        assert both > accountant.epsilon(multiset({bare: 20}), 1e-6) * 1.01


@given(lengths, st.floats(0, 10) | st.just(math.nan), st.floats(0.01, 10))
def test_a_record_changes_the_count_by_half(norms: list[float], more: float, clip: float) -> None:
    with_it = centred_count(torch.tensor([*norms, more], dtype=torch.float64), clip)
    without = centred_count(torch.tensor(norms, dtype=torch.float64), clip)
    assert with_it - without == (0.5 if more <= clip else -0.5)


def test_no_record_counts_nothing_and_gets_noise_all_the_same() -> None:
    assert centred_count(torch.zeros(0), 1.0) == 0.0
    assert noisy_count(0.0, 3.0, generator(1)) != 0.0


def test_the_counts_noise_has_half_its_multiplier() -> None:
    rng = generator(5)
    sample = np.array([noisy_count(7.5, 6.0, rng) for _ in range(4000)]) - 7.5
    low, high = stats.chi2.ppf([SURE / 2, 1 - SURE / 2], sample.size) / sample.size
    assert low < (sample**2).mean() / 3.0**2 < high
    assert stats.kstest(sample / 3.0, "norm").pvalue > SURE


@pytest.mark.parametrize("start", [0.001, 30.0])
@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_the_norm_goes_to_the_quantile(start: float, quantile: float) -> None:
    norms = torch.from_numpy(np.random.default_rng(0).lognormal(0.3, 0.7, 500))
    clip, rng, tail = start, generator(9, str(quantile)), []
    for _ in range(250):
        count = noisy_count(centred_count(norms, clip), 20.0, rng)
        below = min(1.0, max(0.0, share_below(count, 500)))
        clip = moved_clip(clip, below, quantile, 0.2)
        tail.append(clip)
    reached = np.exp(np.mean(np.log(tail[-80:])))
    assert reached == pytest.approx(float(np.quantile(norms, quantile)), rel=0.05)


@given(st.floats(SMALLEST, LARGEST), st.floats(0, 1), st.floats(0.01, 0.99), st.floats(0.01, 5))
@hypothesis_settings(max_examples=200)
def test_the_norm_stays_in_its_range_and_moves_the_right_way(
    clip: float, below: float, quantile: float, rate: float
) -> None:
    moved = moved_clip(clip, below, quantile, rate)
    assert SMALLEST <= moved <= LARGEST
    assert (moved <= clip) if below >= quantile else (moved >= clip)
    if SMALLEST < moved < LARGEST:
        assert math.log(moved / clip) == pytest.approx(rate * (quantile - below), abs=1e-9)


@pytest.mark.parametrize("z", [0.0, -1.0, math.inf, math.nan])
def test_arguments_that_are_refused(z: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier="):
        split(z, 0.1)
    with pytest.raises(ValueError, match="multiplier="):
        noisy_count(1.0, z, generator(1))
    with pytest.raises(ValueError, match="expected="):
        share_below(1.0, z)
    with pytest.raises(ValueError, match="below="):
        moved_clip(1.0, z - 0.5, 0.5, 0.2)
    with pytest.raises(ValueError, match="share="):
        split(1.0, 1.0)
