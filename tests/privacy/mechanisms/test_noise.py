"""Gaussian noise: its scale, its shape, its grid, and that nothing non-finite passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.mechanisms.clipping import clip_and_sum
from privacy.mechanisms.gaussian import add_gaussian, gaussian, grid_spacing
from privacy.randomness import generator


@pytest.mark.parametrize("std", [1e-8, 0.5, 1.0, 37.0])
def test_distribution_is_the_stated_gaussian(std):
    sample = gaussian(200_000, std, generator(1, "noise", str(std)))
    assert stats.kstest(sample / std, "norm").pvalue > 1e-4
    assert sample.dtype == np.float64


def test_scale_is_noise_multiplier_times_sensitivity():
    rng = generator(2)
    for sensitivity, multiplier in [(0.1, 1.0), (2.0, 0.7), (5.0, 3.0)]:
        noisy = add_gaussian(torch.zeros(100_000), sensitivity, multiplier, rng)
        assert float(noisy.std()) == pytest.approx(sensitivity * multiplier, rel=0.02)
        assert abs(float(noisy.mean())) < 5 * sensitivity * multiplier / 100_000**0.5


def test_noise_is_added_to_the_vector_and_not_in_place():
    vector = torch.arange(1000, dtype=torch.float64)
    kept = vector.clone()
    noisy = add_gaussian(vector, 1.0, 0.01, generator(3))
    assert torch.equal(vector, kept)
    assert 0 < float((noisy - vector).abs().max()) < 0.1


def test_an_empty_poisson_batch_still_releases_noise():
    batch = torch.zeros((0, 5000))
    clipped = clip_and_sum([batch], 1.0)
    noisy = add_gaussian(clipped.sums[0], 1.0, 1.3, generator(4))
    assert float(noisy.std()) == pytest.approx(1.3, rel=0.06)


def test_zero_noise_is_exact():
    assert np.all(gaussian((3, 2), 0.0, generator(1)) == 0)
    vector = torch.randn(10)
    assert torch.equal(add_gaussian(vector, 1.0, 0.0, generator(1)), vector)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_shape_are_kept(dtype):
    vector = torch.ones((4, 5), dtype=dtype)
    noisy = add_gaussian(vector, 1.0, 1.0, generator(5))
    assert noisy.dtype == dtype
    assert noisy.shape == vector.shape
    assert not torch.equal(noisy, vector)


def test_four_draws_make_a_sample():
    rng, reference = generator(6), generator(6)
    draws = reference.standard_normal((4, 8))
    assert gaussian(8, 3.0, rng) == pytest.approx(draws.sum(axis=0) / 2 * 3.0)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_bad_std(std):
    with pytest.raises(ValueError, match="std"):
        gaussian(3, std, generator(1))


@pytest.mark.parametrize(
    ("sensitivity", "multiplier", "name"),
    [
        (0.0, 1.0, "sensitivity"),
        (-1.0, 1.0, "sensitivity"),
        (float("inf"), 1.0, "sensitivity"),
        (1.0, -0.1, "noise_multiplier"),
        (1.0, float("nan"), "noise_multiplier"),
    ],
)
def test_bad_scale(sensitivity, multiplier, name):
    with pytest.raises(ValueError, match=name):
        add_gaussian(torch.zeros(3), sensitivity, multiplier, generator(1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_vector_is_refused_since_noise_does_not_hide_it(bad):
    with pytest.raises(ValueError, match="finite"):
        add_gaussian(torch.tensor([0.0, bad]), 1.0, 1.0, generator(1))


def test_integers_are_refused():
    with pytest.raises(ValueError, match="floating"):
        add_gaussian(torch.zeros(3, dtype=torch.int64), 1.0, 1.0, generator(1))


@given(st.floats(2.0**-133, 1e30))
def test_grid_is_a_power_of_two_near_2_to_the_minus_16_of_the_noise(std):
    spacing = grid_spacing(std)
    assert math.frexp(spacing)[0] == 0.5
    assert 2.0**-17 < spacing / std <= 2.0**-16


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf"), 2.0**-134])
def test_grid_of_bad_std(std):
    with pytest.raises(ValueError, match="std"):
        grid_spacing(std)


def test_noise_that_underflows_is_refused_and_not_left_out():
    with pytest.raises(ValueError, match="std"):
        add_gaussian(torch.zeros(3, dtype=torch.float64), 1e-200, 1e-200, generator(1))


@given(
    std=st.floats(1e-6, 1e6),
    offset=st.floats(-50, 50),
    seed=st.integers(0, 2**30),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_result_is_the_noisy_value_on_the_grid_whatever_the_value_is(std, offset, seed, dtype):
    """In float32 exactly too: no second rounding, which would depend on the value's size."""
    vector = torch.linspace(-1, 1, 40, dtype=dtype) * std + offset * std
    noisy = add_gaussian(vector, std, 1.0, generator(seed)).double()
    points = noisy / grid_spacing(std)
    assert torch.equal(points, points.round())
    exact = vector.double() + torch.from_numpy(gaussian(40, std, generator(seed)))
    assert torch.equal(noisy, (exact / grid_spacing(std)).round() * grid_spacing(std))


def test_both_parities_of_the_grid_are_used_alike():
    """The last bit that leaves is a coin: it tells nothing of the value."""
    for value in (0.0, 0.3):
        noisy = add_gaussian(torch.full((100_000,), value), 1.0, 1.1, generator(9))
        odd = (noisy.double() / grid_spacing(1.1)).long() & 1
        assert abs(float(odd.double().mean()) - 0.5) < 5 * 0.5 / 100_000**0.5
