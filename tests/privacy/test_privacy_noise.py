"""Gaussian noise: its scale, its shape, and that nothing non-finite passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.clipping import clip_and_sum
from privacy.noise import add_gaussian, gaussian
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
