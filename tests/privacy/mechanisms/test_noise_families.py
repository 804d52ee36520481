"""Exponential-power and staircase noise, and gamma numbers, against scipy and published optima."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from privacy.mechanisms.scalar_noise import (
    ExponentialPowerNoise,
    GaussianNoise,
    LaplaceNoise,
    StaircaseNoise,
)
from privacy.mechanisms.scalar_noise.gamma import standard_gamma
from privacy.randomness import generator

EPSILONS = (0.05, 0.7, 3.0)


@given(st.floats(0.2, 10), st.floats(1e-3, 1e3), st.floats(0, 30))
@settings(max_examples=200, deadline=None)
def test_exponential_power_against_scipy(beta: float, scale: float, z: float) -> None:
    noise, x = ExponentialPowerNoise(beta, scale), z * scale
    oracle = scipy.stats.gennorm(beta, scale=scale)
    assert float(noise.log_density(x)) == pytest.approx(oracle.logpdf(x), rel=1e-10, abs=1e-10)
    assert float(noise.survival(-x)) == pytest.approx(oracle.sf(-x), rel=1e-10)
    assert noise.std == pytest.approx(oracle.std(), rel=1e-8)
    if oracle.sf(x) > 1e-290:
        assert float(noise.survival(x)) == pytest.approx(oracle.sf(x), rel=1e-8)


@pytest.mark.parametrize("beta", [0.15, 0.5, 1.0, 1.7, 2.0, 6.0])
@pytest.mark.parametrize("power", [3.0, 499.0, 501.0, 5000.0])
def test_exponential_power_tail_without_underflow(beta: float, power: float) -> None:
    noise = ExponentialPowerNoise(beta, 1.0)
    with mpmath.workdps(60):
        exact = mpmath.log(mpmath.gammainc(1 / mpmath.mpf(beta), power, regularized=True) / 2)
    assert float(noise.log_survival(power ** (1 / beta))) == pytest.approx(float(exact), rel=1e-8)


def test_exponential_power_has_its_two_limits() -> None:
    x = np.array([-30.0, -2.0, 0.0, 0.1, 4.0, 25.0])
    laplace, gaussian = LaplaceNoise(1.3), GaussianNoise(2.0)
    for noise, limit in (
        (ExponentialPowerNoise(1.0, 1.3), laplace),
        (ExponentialPowerNoise(2.0, 2.0 * math.sqrt(2)), gaussian),
    ):
        np.testing.assert_allclose(noise.log_survival(x), limit.log_survival(x), rtol=1e-10)
        np.testing.assert_allclose(noise.log_density(x), limit.log_density(x), rtol=1e-12)
        assert noise.std == pytest.approx(limit.std)
        assert noise.mean_abs == pytest.approx(limit.mean_abs)
    assert [ExponentialPowerNoise(b, 1.0).shape for b in (0.99, 1.0)] == [
        "log-convex",
        "log-concave",
    ]


@pytest.mark.parametrize("k", [0.2, 0.95, 1.0, 1.5, 40.0])
def test_gamma_numbers_against_scipy(k: float) -> None:
    x = standard_gamma(k, (100, 2000), generator(5, "gamma")).reshape(-1)
    assert scipy.stats.kstest(x, scipy.stats.gamma(k).cdf).pvalue > 1e-6
    assert standard_gamma(k, 0, generator(5)).shape == (0,)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("gamma", [0.01, 0.4, 0.5, 1.0])
@pytest.mark.parametrize("period", [1.0, 0.37])
def test_staircase_against_sums_over_its_steps(epsilon: float, gamma: float, period: float) -> None:
    noise = StaircaseNoise(epsilon, gamma, period)
    b = mpmath.exp(-mpmath.mpf(epsilon))
    top = (1 - b) / (2 * period * (gamma + b * (1 - mpmath.mpf(gamma))))

    def moment(power: int) -> float:
        """Twice the integral of x^power over the top step and the steps after it."""

        def over(low: mpmath.mpf, high: mpmath.mpf) -> mpmath.mpf:
            return (high ** (power + 1) - low ** (power + 1)) / (power + 1)

        rest = mpmath.nsum(
            lambda k: b**k * over((k - 1 + gamma) * period, (k + gamma) * period), [1, mpmath.inf]
        )
        return float(2 * top * (over(mpmath.mpf(0), gamma * period) + rest))

    assert moment(0) == pytest.approx(1, rel=1e-10)
    assert noise.mean_abs == pytest.approx(moment(1), rel=1e-9)
    assert noise.std == pytest.approx(math.sqrt(moment(2)), rel=1e-9)
    steps = np.arange(5) + gamma
    inside = (np.append(0.0, steps[:-1]) + steps) / 2 * period
    np.testing.assert_allclose(
        noise.log_density(inside), float(mpmath.log(top)) - epsilon * np.arange(5), rtol=1e-10
    )
    # An edge is on the upper step, and is where `breaks` says.
    edges = noise.breaks(5.0 * period)
    np.testing.assert_allclose(edges, steps * period, rtol=1e-12)
    np.testing.assert_array_equal(noise.log_density(edges), noise.log_density(inside))
    np.testing.assert_array_equal(
        noise.log_density(np.nextafter(edges, np.inf))[:4], noise.log_density(inside)[1:]
    )


@given(st.floats(0.01, 6), st.floats(0.01, 1.0), st.floats(-40, 40), st.floats(-1, 1))
@settings(max_examples=300, deadline=None)
def test_staircase_is_pure_privacy(epsilon: float, gamma: float, x: float, shift: float) -> None:
    noise = StaircaseNoise(epsilon, gamma)
    loss = float(noise.log_density(x) - noise.log_density(x + shift))
    assert abs(loss) <= epsilon * (1 + 1e-9)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_staircase_has_the_published_optima(epsilon: float) -> None:
    """Theorems 3 and 4 of Geng and Viswanath: gamma, and the value of E|x|."""

    def best(moment: str) -> tuple[float, float]:
        found = minimize_scalar(
            lambda g: getattr(StaircaseNoise(epsilon, g), moment),
            bounds=(1e-6, 1.0),
            method="bounded",
            options={"xatol": 1e-10},
        )
        return float(found.x), float(found.fun)

    gamma, value = best("mean_abs")
    assert gamma == pytest.approx(1 / (1 + math.exp(epsilon / 2)), abs=1e-5)
    assert value == pytest.approx(math.exp(epsilon / 2) / math.expm1(epsilon), rel=1e-9)
    b = math.exp(-epsilon)
    cube = (b - 2 * b**2 + 2 * b**4 - b**5) ** (1 / 3)
    closed = -b / (1 - b) + cube / (2 ** (1 / 3) * (1 - b) ** 2)
    assert best("std")[0] == pytest.approx(closed, abs=1e-4)
    assert best("std")[1] < LaplaceNoise(1 / epsilon).std


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialPowerNoise(0.05, 1.0), "Expected 0.1 <= beta <= 20, got beta=0.05"),
        (lambda: ExponentialPowerNoise(math.nan, 1.0), "got beta=nan"),
        (lambda: ExponentialPowerNoise(1.0, -1.0), "got scale=-1"),
        (lambda: StaircaseNoise(0.0, 0.5), "got epsilon=0"),
        (lambda: StaircaseNoise(1.0, 0.0), "Expected 0 < gamma <= 1, got gamma=0"),
        (lambda: StaircaseNoise(1.0, 0.5, math.inf), "got period=inf"),
        (lambda: StaircaseNoise(1.0, 0.5).scaled(0.0), "got factor=0"),
        (lambda: standard_gamma(0.0, 3, generator(1)), "got k=0"),
    ],
)
def test_parameters_that_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
