"""LMO noise: its moment generating function, its tail, its moments, and a sampler that agrees."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.mechanisms.scalar_noise import LmoNoise
from privacy.mechanisms.scalar_noise.truncated_normal import tilted_normal, truncated_quantile
from privacy.randomness import generator
from tests.support.scalar_noise import PAPER_STRONG, PAPER_WEAK

SURE = 1e-6
positive = st.floats(0.05, 10)
weight = st.floats(0.01, 3)


def noises(draw_all: bool = False) -> st.SearchStrategy[LmoNoise]:
    """Noise of any terms, at least one of them."""
    optional = weight if draw_all else st.one_of(st.just(0.0), weight)
    return st.builds(
        lambda low, width, start, reach, a, **kw: LmoNoise(
            uniform_low=low,
            uniform_high=low + width,
            normal_low=start,
            normal_high=start + reach,
            a1=a,
            **kw,
        ),
        low=st.floats(0, 3),
        width=positive,
        start=st.one_of(st.just(0.0), st.floats(0, 3)),
        reach=st.floats(1, 10),
        a=weight,
        a2=optional,
        a3=optional,
        a4=optional,
        gamma_shape=positive,
        gamma_scale=positive,
        exponential_rate=positive,
        normal_mean=st.floats(-3, 5),
        normal_std=st.floats(0.2, 5),
    )


def exact_mgf(noise: LmoNoise, t: mp.mpf) -> mp.mpf:
    """E exp(t u), in many digits, from the definitions of the terms' distributions."""
    n = noise
    found = mp.mpf(1)
    if n.a1:
        found *= (1 - mp.mpf(n.a1) * n.gamma_scale * t) ** (-mp.mpf(n.gamma_shape))
    if n.a3:
        found *= n.exponential_rate / (n.exponential_rate - mp.mpf(n.a3) * t)
    if n.a4:
        a, b, s = mp.mpf(n.uniform_low), mp.mpf(n.uniform_high), n.a4 * t
        found *= (mp.exp(b * s) - mp.exp(a * s)) / ((b - a) * s) if s else 1
    if n.a2:
        s = n.a2 * t

        def mass(c: mp.mpf) -> mp.mpf:
            """Of N(c, std^2) between the bounds."""
            low = (n.normal_low - c) / (mp.sqrt(2) * n.normal_std)
            high = (n.normal_high - c) / (mp.sqrt(2) * n.normal_std)
            return (
                (mp.erfc(low) - mp.erfc(high)) / 2
                if low > 0
                else (mp.erfc(-high) - mp.erfc(-low)) / 2
            )

        tilted = n.normal_mean + mp.mpf(n.normal_std) ** 2 * s
        found *= mp.exp(n.normal_mean * s + (n.normal_std * s) ** 2 / 2)
        found *= mass(tilted) / mass(mp.mpf(n.normal_mean))
    return found


@given(noises(), st.floats(-6, 5), st.booleans())
@settings(max_examples=150, deadline=None)
def test_tail_and_density_against_many_digits(noise: LmoNoise, log10: float, right: bool) -> None:
    x = 10.0**log10 * noise.width
    with mp.workdps(60):
        tail = exact_mgf(noise, -mp.mpf(x)) / 2
        slope = mp.diff(lambda t: exact_mgf(noise, t), -mp.mpf(x)) / 2
        log_tail, log_density = mp.log(tail), mp.log(slope)
        rest = mp.log(1 - tail)
    side = x if right else -x
    expected = float(log_tail if right else rest)
    assert float(noise.log_survival(side)) == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert float(noise.log_density(side)) == pytest.approx(float(log_density), rel=1e-9, abs=1e-9)


@given(noises(), st.floats(0.001, 0.99))
@settings(max_examples=60, deadline=None)
def test_mgf_at_positive_orders_exists_up_to_the_range(noise: LmoNoise, share: float) -> None:
    end = min(noise.largest_order, 30 / noise.width)
    with mp.workdps(60):
        expected = float(mp.log(exact_mgf(noise, mp.mpf(share * end))))
    assert float(noise.log_mgf(share * end)) == pytest.approx(expected, rel=1e-9, abs=1e-10)
    if math.isfinite(noise.largest_order):
        assert float(noise.log_mgf(noise.largest_order)) == math.inf
        assert float(noise.log_mgf(2 * noise.largest_order)) == math.inf


@pytest.mark.parametrize(
    ("noise", "std", "pure"), [(PAPER_STRONG, 7.12, 0.235), (PAPER_WEAK, 0.585, 2.46)]
)
def test_the_papers_settings(noise: LmoNoise, std: float, pure: float) -> None:
    assert noise.std == pytest.approx(std, rel=1e-3)
    assert noise.pure_epsilon == pytest.approx(pure, rel=2e-3)


def test_one_term_is_a_known_distribution() -> None:
    laplace = LmoNoise(a4=1.0, uniform_low=0.5 - 1e-9, uniform_high=0.5 + 1e-9)
    x = np.array([0.0, 0.1, 3.0, 40.0])
    np.testing.assert_allclose(laplace.log_density(x), -0.5 * x - math.log(4), rtol=1e-8)
    assert laplace.std == pytest.approx(math.sqrt(8), rel=1e-8)
    # Gamma alone: a two-sided Lomax (Pareto) distribution.
    lomax = LmoNoise(a1=0.5, gamma_shape=4.0, gamma_scale=0.25)
    oracle = scipy.stats.lomax(4.0, scale=8.0)
    np.testing.assert_allclose(2 * lomax.survival(x), oracle.sf(x), rtol=1e-12)
    assert lomax.mean_abs == pytest.approx(oracle.mean(), rel=1e-9)
    assert lomax.std**2 == pytest.approx(oracle.moment(2), rel=1e-8)


@pytest.mark.parametrize(("shape", "mean", "std"), [(1.0, math.inf, math.inf), (1.5, 0, math.inf)])
def test_moments_that_do_not_exist_are_infinite(shape: float, mean: float, std: float) -> None:
    noise = LmoNoise(a1=1.0, gamma_shape=shape)
    assert (noise.mean_abs == math.inf) == (mean == math.inf)
    assert noise.std == std


GRID = [
    PAPER_STRONG,
    PAPER_WEAK,
    LmoNoise(a3=1.0, exponential_rate=5.0),
    LmoNoise(a3=0.2, exponential_rate=0.3, a4=0.5, uniform_low=0.1, uniform_high=0.2),
    LmoNoise(a1=1.0, gamma_shape=0.6, gamma_scale=3.0),
    LmoNoise(a1=0.3, gamma_shape=5.0, gamma_scale=0.2, a3=1.0, exponential_rate=2.0),
    LmoNoise(a2=1.0, normal_mean=0.5, normal_std=0.3, normal_low=0.1, normal_high=1.5),
    LmoNoise(
        a2=0.7,
        normal_mean=-1.0,
        normal_std=0.5,
        normal_low=0.2,
        normal_high=9.0,
        a3=0.3,
        exponential_rate=3.0,
    ),
    LmoNoise(a4=2.0, uniform_low=0.0, uniform_high=3.0),
]


def fit(x: np.ndarray, noise: LmoNoise) -> float:
    """p-value of a chi-square test in 400 cells of equal probability by the accounted tail."""
    probability = noise.survival(x)  # uniform if right
    counts = np.histogram(probability, bins=400, range=(0, 1))[0]
    return float(scipy.stats.chisquare(counts).pvalue)


@pytest.mark.parametrize("noise", GRID, ids=lambda n: f"{n.a1}-{n.a2}-{n.a3}-{n.a4}")
def test_a_million_samples_have_the_accounted_distribution(noise: LmoNoise) -> None:
    x = noise.sample(1_000_000, generator(21, "lmo fit"))
    assert fit(x, noise) > SURE
    # Far tails: of 1e6 draws 100 lie beyond each side's 1e-4 quantile.
    for side in (x, -x):
        beyond = int((noise.survival(side) < 1e-4).sum())
        assert scipy.stats.binomtest(beyond, x.size, 1e-4).pvalue > SURE


@pytest.mark.parametrize("noise", GRID, ids=lambda n: f"{n.a1}-{n.a2}-{n.a3}-{n.a4}")
def test_the_fit_sees_a_rate_for_a_scale_and_one_scale_for_all(noise: LmoNoise) -> None:
    rng = generator(22, "lmo power")
    if noise.a3:
        other = noise.parameters
        other["exponential_rate"] = 1 / noise.exponential_rate
        assert fit(LmoNoise(**other).sample(1_000_000, rng), noise) < SURE
    if noise.a1 and noise.gamma_scale != 1:
        other = noise.parameters
        other["gamma_scale"] = 1 / noise.gamma_scale
        assert fit(LmoNoise(**other).sample(1_000_000, rng), noise) < SURE
    mean = float(noise.mean_inverse_scale(0.0))
    one_scale = noise.sample_inverse_scale(1_000_000, rng) / mean  # Laplace of the mean rate
    plain = noise.sample(1_000_000, rng) * one_scale
    assert fit(plain, noise) < SURE
    assert fit(1.05 * noise.sample(1_000_000, rng), noise) < SURE


def test_each_coordinate_has_a_scale_of_its_own() -> None:
    """|x| of neighbouring coordinates is uncorrelated; one shared u would correlate it."""
    noise = LmoNoise(a1=1.0, gamma_shape=3.0)
    log_size = np.log(np.abs(noise.sample((500_000, 2), generator(5))))
    assert abs(np.corrcoef(log_size.T)[0, 1]) < 5 / math.sqrt(500_000)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.0, 1e6), (3.0, 9.0), (-9.0, -4.0)])
def test_truncated_normal_samples(low: float, high: float) -> None:
    u = generator(3).random(200_000)
    z = truncated_quantile(low, high, u + 2.0**-54)
    found = scipy.stats.kstest(z, scipy.stats.truncnorm(low, high).cdf)
    assert found.pvalue > SURE
    mean, variance = scipy.stats.truncnorm.stats(low, high)
    log_mgf, first = tilted_normal(low, high, np.array([0.0, 1e-5]))
    assert first[0] == pytest.approx(mean - low, rel=1e-9)
    assert log_mgf[0] == pytest.approx(0.0, abs=1e-14)
    assert (first[1] - first[0]) / 1e-5 == pytest.approx(variance, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "a1, a2, a3 or a4 > 0"),
        ({"a1": -1.0}, "a1 >= 0, got a1=-1.0"),
        ({"a3": 1.0, "exponential_rate": 0.0}, "exponential_rate > 0, got exponential_rate=0.0"),
        ({"a1": 1.0, "gamma_scale": math.nan}, "gamma_scale"),
        ({"a4": 1.0, "uniform_low": 2.0, "uniform_high": 1.0}, "uniform_low <= uniform_high"),
        ({"a4": 1.0, "uniform_high": 0.0}, "uniform_high > 0"),
        ({"a2": 1.0, "normal_low": 1.0, "normal_high": 1.0}, "normal_low"),
        ({"a2": 1.0, "normal_mean": math.inf}, "normal_mean=inf"),
    ],
)
def test_parameters_that_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LmoNoise(**values)
