"""Every family of scalar noise: density, tail, moments, samples and files tell the same story."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from privacy.mechanisms.scalar_noise import (
    ExponentialPowerNoise,
    GaussianNoise,
    LaplaceNoise,
    ScalarNoise,
    StaircaseNoise,
    noise_from_dict,
)
from privacy.randomness import generator
from tests.support.scalar_noise import HEAVY, PAPER_STRONG, PAPER_WEAK

FAMILIES: list[ScalarNoise] = [
    LaplaceNoise(0.4),
    LaplaceNoise(30.0),
    GaussianNoise(0.7),
    GaussianNoise(25.0),
    ExponentialPowerNoise(0.6, 0.3),
    ExponentialPowerNoise(1.6, 2.0),
    StaircaseNoise(1.0, 0.4, 2.5),
    StaircaseNoise(3.0, 0.2),
    StaircaseNoise(0.7, 1.0),
    PAPER_STRONG,
    PAPER_WEAK,
    HEAVY,
]


def _pieces(noise: ScalarNoise, largest: float) -> list[float]:
    """Where to cut an integral over (0, largest)."""
    cuts = noise.width * np.array([0.01, 0.1, 0.5, 1, 2, 4, 8, 16, 40, 100, 300, 1e3, 1e4, 1e5])
    inside = np.concatenate([cuts[cuts < largest], noise.breaks(largest)])
    return sorted({0.0, *inside.tolist(), largest})


def _integral(noise: ScalarNoise, power: int, low: float, high: float) -> float:
    """Integral of x^power f(x) over [low, high], 0 <= low."""
    cuts = [low, *(c for c in _pieces(noise, high) if low < c < high), high]
    return math.fsum(
        quad(lambda x: x**power * math.exp(float(noise.log_density(x))), a, b, epsabs=0, limit=200)[
            0
        ]
        for a, b in itertools.pairwise(cuts)
    )


@pytest.mark.parametrize("noise", FAMILIES, ids=repr)
def test_the_tail_is_the_integral_of_the_density(noise: ScalarNoise) -> None:
    for x in noise.width * np.array([0.0, 0.2, 1.0, 3.0, 7.0]):
        middle = _integral(noise, 0, 0.0, float(x)) if x > 0 else 0.0
        assert float(noise.survival(x)) == pytest.approx(0.5 - middle, rel=1e-8, abs=1e-12)
        assert float(noise.survival(-x)) == pytest.approx(0.5 + middle, rel=1e-10)
        assert float(noise.log_density(-x)) == float(noise.log_density(x))


@pytest.mark.parametrize("noise", FAMILIES, ids=repr)
def test_the_far_tail_keeps_its_relative_accuracy(noise: ScalarNoise) -> None:
    for x in noise.width * np.array([4.0, 8.0, 12.0]):
        tail = _integral(noise, 0, float(x), float(x) + 400 * noise.width)
        rest = float(noise.survival(x + 400 * noise.width))
        assert float(noise.survival(x)) == pytest.approx(tail + rest, rel=1e-7)
        assert math.exp(float(noise.log_survival(x))) == pytest.approx(tail + rest, rel=1e-7)


@pytest.mark.parametrize("noise", FAMILIES, ids=repr)
def test_density_falls_and_has_the_shape_that_it_names(noise: ScalarNoise) -> None:
    x = np.linspace(0, 12 * noise.width, 2000)[1:]
    values = noise.log_density(x)
    assert np.all(np.diff(values) <= 1e-12)
    bend = np.diff(values, 2)
    if noise.shape == "log-concave":
        assert np.all(bend <= 1e-9)
    elif noise.shape == "log-convex":
        assert np.all(bend >= -1e-9)
    else:
        breaks = noise.breaks(float(x[-1]))
        piece = np.searchsorted(breaks, x)
        assert np.all(np.diff(values)[np.diff(piece) == 0] == 0)


@pytest.mark.parametrize("noise", FAMILIES, ids=repr)
def test_moments(noise: ScalarNoise) -> None:
    if math.isinf(noise.std) or math.isinf(noise.mean_abs):
        pytest.skip("infinite moment")
    far = 64 * noise.width
    while float(noise.survival(far)) > 1e-14 and far < 1e9 * noise.width:
        far *= 4
    assert noise.mean_abs == pytest.approx(2 * _integral(noise, 1, 0, far), rel=1e-4)
    assert noise.std**2 == pytest.approx(2 * _integral(noise, 2, 0, far), rel=1e-3)


@pytest.mark.parametrize("noise", FAMILIES, ids=repr)
@pytest.mark.parametrize("seed", [7, None])
def test_samples_have_the_distribution_that_is_accounted(
    noise: ScalarNoise, seed: int | None
) -> None:
    x = noise.sample((200, 5000), generator(seed, "goodness of fit")).reshape(-1)
    assert x.dtype == np.float64
    found = scipy.stats.kstest(x, lambda v: 1 - noise.survival(v))
    assert found.pvalue > 1e-6
    # The tails, which the test above hardly sees.
    for probability in (1e-2, 1e-3, 1e-4):
        at = float(np.quantile(np.abs(x), 1 - probability))
        expected = 2 * float(noise.survival(at)) * x.size
        assert expected == pytest.approx(probability * x.size, abs=6 * math.sqrt(expected))


@pytest.mark.parametrize("noise", FAMILIES, ids=repr)
def test_scaled_and_files(noise: ScalarNoise) -> None:
    assert noise_from_dict(noise.to_dict()) == noise
    assert hash(noise_from_dict(noise.to_dict())) == hash(noise)
    x = noise.width * np.array([-2.0, 0.3, 5.0])
    double = noise.scaled(2.0)
    np.testing.assert_allclose(double.survival(2 * x), noise.survival(x), rtol=1e-11)
    np.testing.assert_allclose(
        double.log_density(2 * x), noise.log_density(x) - math.log(2), rtol=0, atol=1e-10
    )
    assert double.std == pytest.approx(2 * noise.std)
    assert double.mean_abs == pytest.approx(2 * noise.mean_abs)


@given(st.floats(1e-3, 1e3), st.floats(0, 200))
@settings(max_examples=100, deadline=None)
def test_laplace_against_scipy(scale: float, z: float) -> None:
    noise, x = LaplaceNoise(scale), z * scale
    oracle = scipy.stats.laplace(scale=scale)
    assert float(noise.log_density(x)) == pytest.approx(oracle.logpdf(x), rel=1e-12, abs=1e-12)
    assert float(noise.log_survival(x)) == pytest.approx(oracle.logsf(x), rel=1e-12)
    assert float(noise.survival(-x)) == pytest.approx(oracle.sf(-x), rel=1e-12)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"family": "cauchy", "parameters": {}}, "got family='cauchy'"),
        ({"family": "laplace", "parameters": {"sigma": 1.0}}, "parameters.*scale.*got.*sigma"),
        ({"family": "laplace", "parameters": {"scale": "1"}}, "got scale='1'"),
        ({"family": "laplace", "parameters": {"scale": True}}, "got scale=True"),
        ({"family": "laplace", "parameters": {"scale": 0.0}}, "got scale=0.0"),
        ({"family": "gaussian", "parameters": {"sigma": math.inf}}, "got sigma=inf"),
        ({"parameters": {}}, "keys family and parameters"),
        ([], "got list"),
    ],
)
def test_files_that_are_refused(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noise_from_dict(data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="laplace"):
        LaplaceNoise.from_dict(GaussianNoise(1.0).to_dict())
