"""What the audits of the attacks stand on: rates, areas, lower and upper bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from privacy.events.constructors import dp_sgd, gaussian
from privacy.events.multiset import multiset
from privacy.randomness import generator
from simulations.attacks import auditing
from simulations.attacks.protections import Protection, noise_for


def test_area_counts_pairs() -> None:
    rng = generator(0, "auc")
    members, others = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 30).astype(float)
    pairs = np.sign(members[:, None] - others[None, :])
    area, error = auditing.area_under_curve(members, others)
    assert area == pytest.approx(((pairs + 1) / 2).mean())
    assert 0.02 < error < 0.1


def test_delong_error_is_the_spread_of_areas() -> None:
    rng = generator(1, "auc")
    found = [
        auditing.area_under_curve(rng.normal(0.7, 1, 60), rng.normal(0, 1, 50)) for _ in range(400)
    ]
    areas, errors = np.array(found).T
    assert areas.mean() == pytest.approx(norm.cdf(0.7 / math.sqrt(2)), abs=0.01)
    assert errors.mean() == pytest.approx(areas.std(), rel=0.12)


@pytest.mark.parametrize(("hits", "trials"), [(0, 7), (7, 7), (3, 40)])
def test_clopper_pearson_is_scipy_s(hits: int, trials: int) -> None:
    expected = binomtest(hits, trials).proportion_ci(method="exact")
    assert auditing.clopper_pearson(hits, trials) == pytest.approx((expected.low, expected.high))


def test_rate_at_a_threshold() -> None:
    others = np.arange(100.0)
    members = np.array([98.5, 99.5, 200.0, 3.0])
    found = auditing.true_positive_rate(members, others, 0.01)
    assert found["tpr"] == 0.75
    assert found["fpr"] == 0.01
    assert found["low"] < 0.75 < found["high"]


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_audit_of_randomised_response(epsilon: float) -> None:
    """The bound fails as rarely as it says, and comes near where there is much data."""
    rng = generator(2, "audit")
    truth = 1 / (1 + math.exp(-epsilon))
    bounds = []
    for _ in range(150):
        coins = rng.random(1000) < 0.5
        answers = np.where(rng.random(1000) < truth, coins, ~coins)
        bounds.append(auditing.audited_epsilon(answers + 1e-3 * rng.random(1000), coins, 0.0))
    # 5 % may exceed; 3.3 standard errors of 150 trials on top
    assert np.mean(np.array(bounds) > epsilon) <= 0.05 + 3.3 * math.sqrt(0.05 * 0.95 / 150)
    assert np.mean(bounds) > 0.6 * epsilon


def test_audit_refutes_a_wrong_claim_and_no_right_one() -> None:
    rng = generator(3, "audit")
    coins = rng.random(2000) < 0.5
    noise = noise_for(1.0)
    honest = coins + noise * rng.standard_normal(2000)
    assert auditing.audited_epsilon(honest, coins, 1e-5) < 1.0
    broken = coins + noise / 10 * rng.standard_normal(2000)
    assert auditing.audited_epsilon(broken, coins, 1e-5) > 1.0


def test_delta_makes_the_audit_weaker() -> None:
    values = [auditing.audit_p_value(500, 500, 320, 0.4, delta) for delta in (0.0, 1e-5, 1e-3)]
    assert values[0] < values[1] < values[2]


def test_greatest_rates_are_the_gaussian_trade_off() -> None:
    """Above the exact curve (they are bounds), and close to it."""
    noise, rates = 1.7, np.array([0.001, 0.01, 0.05, 0.3, 0.8])
    found = auditing.greatest_rates(multiset({gaussian(noise): 1}), rates)
    exact = norm.cdf(norm.ppf(rates) + 1 / noise)
    assert (found >= exact - 1e-9).all()
    assert (found <= exact * 1.03 + 1e-4).all()
    area = auditing.greatest_area(multiset({gaussian(noise): 1}))
    assert norm.cdf(1 / noise / math.sqrt(2)) <= area <= norm.cdf(1 / noise / math.sqrt(2)) + 0.02


def test_more_noise_allows_less() -> None:
    rates = np.array([0.01, 0.1])
    loud, quiet = (
        auditing.greatest_rates(multiset({dp_sgd(0.5, noise, 40): 1}), rates)
        for noise in (8.0, 2.0)
    )
    assert (loud < quiet).all()
    assert (loud >= rates).all()


def test_identification_bound() -> None:
    assert Protection("none").identification_bound(50) is None
    deaf = Protection("n", clip=1.0, noise_multiplier=1e6).identification_bound(50)
    assert deaf == pytest.approx(1 / 50, rel=1e-3)
    open_ = Protection("n", clip=1.0, noise_multiplier=1e-2).identification_bound(50)
    assert open_ == pytest.approx(1.0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 2 members"):
        auditing.area_under_curve(np.ones(1), np.ones(5))
    with pytest.raises(ValueError, match="equal shapes"):
        auditing.audited_epsilon(np.ones(3), np.ones(4, dtype=bool), 0.0)
    with pytest.raises(ValueError, match="Expected clip with noise"):
        Protection("n", noise_multiplier=1.0)
