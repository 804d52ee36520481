"""What the published code of LMO-DP says of a whole training, computed a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import gammaln, logsumexp

from privacy.lmo_dp.claim import claimed_epsilon
from privacy.lmo_dp.published import published_epsilon, published_scale
from privacy.mechanisms.scalar_noise import LmoNoise
from tests.support.scalar_noise import PAPER_STRONG, PAPER_WEAK


def reference(noise: LmoNoise, delta: float, rate: float, steps: int) -> float:
    """One step's figure from the paper's formula; the sampled Gaussian of the classical formula by its
    binomial sum (Mironov, Talwar and Zhang 2019, section 3.3), at whole orders; Balle et al.'s
    conversion."""
    orders = np.arange(2, 129)

    def converted(divergence: np.ndarray) -> float:
        found = divergence - (math.log(delta) + np.log(orders)) / (orders - 1)
        return float(np.nanmin(found + np.log1p(-1 / orders)))

    def mgf(t: float) -> float:
        n = noise
        if t in (1 / (n.a1 * n.gamma_scale), n.exponential_rate / n.a3):
            return math.nan  # a pole
        found = (1 - n.a1 * n.gamma_scale * t) ** -n.gamma_shape
        found *= n.exponential_rate / (n.exponential_rate - n.a3 * t)
        low, high = n.uniform_low * n.a4 * t, n.uniform_high * n.a4 * t
        return float(found * (math.exp(high) - math.exp(low)) / (high - low))

    claims = []
    for a in map(float, orders):
        inner = (a * mgf(a - 1) + (a - 1) * mgf(-a)) / (2 * a - 1)
        claims.append(math.log(inner) / (a - 1) if inner > 1 else math.nan)
    sigma = math.sqrt(2 * math.log(1.25 / delta)) / converted(np.array(claims))
    total = []
    for a in orders:
        i = np.arange(a + 1)
        binomial = gammaln(a + 1) - gammaln(i + 1) - gammaln(a - i + 1)
        chance = i * math.log(rate) + (a - i) * math.log1p(-rate) if rate < 1 else 0.0
        terms = binomial + chance + (i * i - i) / (2 * sigma**2)
        total.append(logsumexp(terms if rate < 1 else terms[-1]) / (a - 1))
    return converted(steps * np.array(total))


@pytest.mark.parametrize("noise", [PAPER_WEAK.scaled(0.7), PAPER_WEAK, PAPER_WEAK.scaled(2.0)])
@pytest.mark.parametrize(("delta", "rate", "steps"), [(1e-5, 0.064, 30), (1e-10, 0.03, 192)])
def test_published_epsilon_against_the_formulas(
    noise: LmoNoise, delta: float, rate: float, steps: int
) -> None:
    found = published_epsilon(noise, delta, rate, steps)
    # The accountant has other orders than the authors' whole ones up to 128: at small epsilon it is lower.
    assert found == pytest.approx(reference(noise, delta, rate, steps), rel=0.01)


@pytest.mark.parametrize("epsilon", [0.3, 3.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-10])
def test_the_scale_is_the_least_that_is_claimed_to_be_enough(epsilon: float, delta: float) -> None:
    rate, steps = 0.064, 30
    scale = published_scale(PAPER_STRONG, epsilon=epsilon, delta=delta, rate=rate, steps=steps)
    at = PAPER_STRONG.scaled(scale)
    assert 0.998 * epsilon <= published_epsilon(at, delta, rate, steps) <= epsilon
    step = claimed_epsilon(at, delta).epsilon
    for smaller in np.geomspace(0.05, 0.9999, 40):
        assert claimed_epsilon(at.scaled(smaller), delta).epsilon > step
    assert not claimed_epsilon(at, delta).valid  # the figure is won where the formula does not hold


def test_a_target_below_every_claim_is_refused() -> None:
    with pytest.raises(ValueError, match="No amount of this noise is claimed to cost"):
        published_scale(PAPER_STRONG, epsilon=0.05, delta=1e-10, rate=1.0, steps=1000)
    with pytest.raises(ValueError, match="epsilon=0"):
        published_scale(PAPER_STRONG, epsilon=0.0, delta=1e-10, rate=1.0, steps=10)
