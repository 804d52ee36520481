"""Bounds on the length of noisy sums: against exact tails, against adaptive adversaries, and how tight they are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from privacy.mechanisms.norm_tails import (
    GaussianLength,
    NoiseLength,
    ScalarLength,
    largest_sample,
    side_by_side,
    walk,
)
from privacy.mechanisms.scalar_noise import (
    ExponentialPowerNoise,
    GaussianNoise,
    LaplaceNoise,
    LmoNoise,
    ScalarNoise,
    StaircaseNoise,
)
from privacy.randomness import generator

HEAVY = LmoNoise(a1=1.0, gamma_shape=3.5, gamma_scale=0.7)
FAMILIES: dict[str, ScalarNoise] = {
    "laplace": LaplaceNoise(0.7),
    "gaussian": GaussianNoise(1.3),
    "lmo": HEAVY,
    "lmo, infinite variance": LmoNoise(a1=1.0, gamma_shape=1.5, gamma_scale=1.0),
    "exponential power": ExponentialPowerNoise(1.0, 1.4),
    "staircase": StaircaseNoise(1.0, 0.4),
}


@given(size=st.integers(1, 20000), share=st.floats(1e-4, 1.0), exponent=st.floats(0.01, 40.0))
@hypothesis_settings(max_examples=200, deadline=None)
def test_a_sample_is_hardly_ever_larger(size: int, share: float, exponent: float) -> None:
    """Of any number of records with this mean, the limit of many (Poisson) included."""
    k = largest_sample(size * share, exponent)
    above = math.floor(k)
    assert stats.binom.sf(above, size, share) <= math.exp(-exponent) * (1 + 1e-6)
    assert stats.poisson.sf(above, size * share) <= math.exp(-exponent) * (1 + 1e-6)


def test_the_sample_bound_is_not_far_from_the_exact_quantile() -> None:
    for mean in (1.0, 8.0, 64.0, 1000.0):
        exact = stats.poisson.isf(math.exp(-25.0), mean)
        assert exact <= largest_sample(mean, 25.0) <= 1.2 * exact + 1


def exceeds(dimension: int, noncentrality: float, square: float) -> float:
    """P(noncentral chi-squared > square), as a mixture of central ones, with 40 digits."""
    with mpmath.workdps(40):
        half, total, weight = mpmath.mpf(noncentrality) / 2, mpmath.mpf(0), None
        for j in range(400):
            weight = mpmath.exp(-half) if j == 0 else weight * half / j
            tail = mpmath.gammainc(
                mpmath.mpf(dimension) / 2 + j, mpmath.mpf(square) / 2, regularized=True
            )
            total += weight * tail
        return float(total)


@pytest.mark.parametrize("dimension", [1, 7, 300])
@pytest.mark.parametrize("length", [0.0, 2.0, 9.0])
@pytest.mark.parametrize("exponent", [0.7, 14.0, 32.0])
def test_gaussian_noise_is_hardly_ever_longer(
    dimension: int, length: float, exponent: float
) -> None:
    std = 1.7
    bound = GaussianLength(dimension, std).bound(length, exponent)
    found = exceeds(dimension, (length / std) ** 2, (bound / std) ** 2)
    assert found <= math.exp(-exponent)


def test_the_gaussian_bound_is_tight_in_many_dimensions() -> None:
    for length in (0.0, 100.0, 300.0):
        bound = GaussianLength(50_000, 1.0).bound(length, 25.0)
        quantile = (
            stats.ncx2.isf(math.exp(-25.0), 50_000, length**2)
            if length
            else stats.chi2.isf(math.exp(-25.0), 50_000)
        )
        assert math.sqrt(quantile) <= bound <= 1.002 * math.sqrt(quantile)


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    length=st.floats(0.0, 100.0),
    exponent=st.floats(0.1, 30.0),
)
@hypothesis_settings(max_examples=80, deadline=None)
def test_one_number_is_hardly_ever_longer(family: str, length: float, exponent: float) -> None:
    """In one dimension the probability is known exactly, for every family."""
    noise = FAMILIES[family]
    bound = ScalarLength(1, noise).bound(length, exponent)
    outside = float(noise.survival(bound - length)) + float(noise.survival(bound + length))
    assert outside <= math.exp(-exponent)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("spread", [False, True], ids=["one coordinate", "all coordinates"])
def test_many_numbers_are_seldom_longer(family: str, spread: bool) -> None:
    noise, d, count, length = FAMILIES[family], 40, 4000, 20.0
    v = np.full(d, length / d**0.5) if spread else length * np.eye(d)[0]
    sample = v + noise.sample((count, d), generator(3, "norm-tails", family))
    for exponent in (math.log(4), math.log(50)):
        bound = ScalarLength(d, noise).bound(length, exponent)
        share = float((np.linalg.norm(sample, axis=1) > bound).mean())
        assert share <= math.exp(-exponent) + 4 * math.sqrt(math.exp(-exponent) / count)


def test_the_bound_of_laplace_noise_is_tight_in_many_dimensions() -> None:
    bound = ScalarLength(50_000, LaplaceNoise(1.0)).bound(0.0, 25.0)
    assert math.sqrt(50_000 * 2) <= bound <= 1.05 * math.sqrt(50_000 * 2)


def test_published_noise_has_a_bound() -> None:
    text = next(iter(sorted(Path("simulations/experiments/noise").glob("*.json")))).read_text(
        "utf-8"
    )
    from privacy.mechanisms.scalar_noise.lmo import noise_from_json

    noise = noise_from_json(json.loads(text))
    assert math.isfinite(ScalarLength(50_000, noise).bound(1.0, 25.0))


class Aligned:
    """An adversary that lets each sum point along all that came before: the longest walk of given steps."""

    def __init__(self, length: float, dimension: int) -> None:
        self.length, self.dimension = length, dimension

    def ends(self, noise: ScalarNoise, steps: int, count: int) -> np.ndarray:
        rng = generator(5, "aligned", steps)
        place = np.zeros((count, self.dimension))
        for _ in range(steps):
            norm = np.linalg.norm(place, axis=1, keepdims=True)
            along = np.where(norm > 0, place / np.maximum(norm, 1e-300), np.eye(self.dimension)[0])
            place = place + self.length * along
            place += noise.sample((count, self.dimension), rng)
        return np.linalg.norm(place, axis=1)


@pytest.mark.parametrize(("length", "least"), [(0.0, 0.4), (3.0, 0.5), (30.0, 0.85)])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("gaussian", [True, False])
def test_sums_that_follow_the_noise_are_covered(
    length: float, least: float, steps: int, gaussian: bool
) -> None:
    d, count, exponent = 60, 3000, math.log(20)
    noise: ScalarNoise = GaussianNoise(1.0) if gaussian else LaplaceNoise(1.0)
    law: NoiseLength = GaussianLength(d, 1.0) if gaussian else ScalarLength(d, noise)
    ends = Aligned(length, d).ends(noise, steps, count)
    bound = walk(law, length, steps, exponent)
    assert float((ends > bound).mean()) <= 1 / 20 + 4 * math.sqrt(1 / 20 / count)
    least *= 1.0 if gaussian else 0.7
    assert float(np.median(ends)) >= least * bound  # or the bound would refuse nobody


def test_vectors_side_by_side() -> None:
    law, exponent = GaussianLength(3, 1.0), math.log(20)
    sample = 2.0 * np.eye(3)[0] + generator(1, "side").standard_normal((4000, 5, 3))
    lengths = np.linalg.norm(sample.reshape(4000, -1), axis=1)
    bound = side_by_side(law, 2.0, 5, exponent)
    assert float((lengths > bound).mean()) <= 1 / 20
    assert float(np.median(lengths)) > 0.4 * bound


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_impossible_arguments_are_refused(bad: float) -> None:
    for law in (GaussianLength(2, 1.0), ScalarLength(2, LaplaceNoise(1.0))):
        with pytest.raises(ValueError, match="Expected a finite length"):
            law.bound(bad, 1.0)
    with pytest.raises(ValueError, match="Expected a finite std > 0"):
        GaussianLength(2, bad)
    with pytest.raises(ValueError, match="Expected a finite mean > 0"):
        largest_sample(bad, 1.0)
