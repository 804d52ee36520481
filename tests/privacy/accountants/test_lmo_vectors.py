"""LMO noise on vectors, and the published accounting: what it claims, where it holds, what is true."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtr
from typer.testing import CliRunner

from privacy.accountants import UnsupportedEvent, make_accountant
from privacy.accountants.dominating_mu import log_gaussian_delta
from privacy.accountants.gaussian_curve import gaussian_epsilon
from privacy.accountants.losses.distribution import compose
from privacy.accountants.losses.scalar import scalar_losses
from privacy.accountants.vector_bound import gaussian_bound, limit_mu, spread_shift
from privacy.events import constructors as ev
from privacy.events.serialization import UnknownEvent, canonical, event_from_json, event_to_json
from privacy.guarantee import Relation
from privacy.lmo_dp.claim import claimed_epsilon, published_divergence
from privacy.lmo_dp.comparison import lmo_figures
from privacy.mechanisms.scalar_noise import (
    ExponentialPowerNoise,
    GaussianNoise,
    LaplaceNoise,
    LmoNoise,
    ScalarNoise,
    StaircaseNoise,
)
from privacy.mechanisms.scalar_noise.information import fisher_information
from privacy.randomness import generator
from simulations.cli.main import app
from tests.support.scalar_noise import HEAVY, PAPER_STRONG, PAPER_WEAK

CONVEX: list[ScalarNoise] = [
    LaplaceNoise(0.7),
    PAPER_STRONG,
    PAPER_WEAK,
    HEAVY,
    LmoNoise(a1=1.0, gamma_shape=3.0),
    LmoNoise(a1=0.02, gamma_shape=1.2, a4=3.0, uniform_low=0.0, uniform_high=2.0),
]
# The second table of the method: setting -> delta -> (claimed, true one number, true d = 1e4).
TABLE = {
    "strong": (PAPER_STRONG, {1e-5: (0.203, 0.234, 0.807), 1e-10: (0.293, 0.235, 1.31)}),
    "weak": (PAPER_WEAK, {1e-5: (2.75, 2.46, 12.9), 1e-10: (3.00, 2.46, 18.2)}),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("delta", [1e-5, 1e-10])
def test_the_table_by_the_command(name: str, delta: float, tmp_path: Path) -> None:
    noise, rows = TABLE[name]
    keys = [
        "a1",
        "a3",
        "a4",
        "gamma_shape",
        "gamma_scale",
        "exponential_rate",
        "uniform_low",
        "uniform_high",
    ]
    path = tmp_path / "parameters.json"
    path.write_text(json.dumps({key: noise.parameters[key] for key in keys}))
    claimed, one, many = rows[delta]
    for dimension, true in ((1, one), (10_000, many)):
        words = ["lmo-check", str(path), f"--dimension={dimension}", f"--delta={delta}"]
        found = CliRunner().invoke(app, [*words, "--json"])
        assert found.exit_code == 0, found.output
        data = json.loads(found.output)
        assert data["claimed_epsilon"] == pytest.approx(claimed, rel=0.01)
        assert data["claimed_valid"] is False
        assert data["true_epsilon"] == pytest.approx(true, rel=0.01)
        assert data["std"] == pytest.approx(noise.std, rel=1e-9)
        assert data["epsilon_bound"] >= data["true_epsilon"]
        shown = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
        assert shown.exit_code == 0
        assert "no bound" in shown.output
        assert ("For vectors, use Gaussian noise" in shown.output) == (dimension > 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expected JSON in"),
        ("[1]", "JSON object, got list"),
        ('{"a1": 1, "a3": 0, "a4": 0}', "gamma_shape gamma_scale too"),
        ('{"a1": 1, "a3": 0, "a4": 0, "k": 1}', "got k"),
        ('{"a3": 0, "a4": 0}', "Expected the parameters a1 too"),
        ('{"a1": 0, "a3": "1", "a4": 0, "exponential_rate": 1}', "got a3='1'"),
        ('{"a1": 0, "a3": 0, "a4": 0}', "got none"),
        ('{"family": "laplace", "parameters": {"scale": 1}}', "got family='laplace'"),
    ],
)
def test_the_command_refuses_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "parameters.json"
    path.write_text(content)
    found = CliRunner().invoke(app, ["lmo-check", str(path)])
    assert found.exit_code == 2
    assert message in found.output
    assert found.output.count("\n") == 1
    for option in (
        *("--dimension=0", "--delta=1", "--delta=0"),
        *("--epsilon=0", "--sample-rate=0", "--sample-rate=2", "--steps=0"),
    ):
        found = CliRunner().invoke(app, ["lmo-check", str(path), option])
        assert found.exit_code == 2
        assert option.split("=")[0] in found.output
    assert CliRunner().invoke(app, ["lmo-check", str(tmp_path / "none.json")]).exit_code == 2


# -- the claim -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2.0, 3.0, 7.5])
def test_the_papers_divergence_is_that_of_the_number_with_its_scale(order: float) -> None:
    """Against an integral over u of the divergence of Laplace noise of scale 1 / u."""
    noise = LmoNoise(a1=0.1, gamma_shape=1.5, gamma_scale=0.7)

    def integrand(u: float) -> float:
        v = u / (0.1 * 0.7)
        density = v**0.5 * math.exp(-v) / math.gamma(1.5) / (0.1 * 0.7)
        renyi = order * math.exp((order - 1) * u) + (order - 1) * math.exp(-order * u)
        return density * renyi / (2 * order - 1)

    moment = quad(integrand, 0, 40, epsabs=0, limit=500)[0]
    found = float(published_divergence(noise, np.array([order]))[0])
    assert found == pytest.approx(math.log(moment) / (order - 1), rel=1e-7)


@given(st.sampled_from([PAPER_STRONG, PAPER_WEAK, HEAVY]), st.floats(1e-10, 0.1), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_where_the_claim_holds_it_is_above_the_truth(
    noise: LmoNoise, delta: float, count: int
) -> None:
    claim = claimed_epsilon(noise, delta, count)
    assert claim.epsilon <= claim.valid_epsilon
    assert claim.valid == (claim.order < claim.largest_order)
    true = make_accountant("pld").epsilon({ev.scalar_noise(noise, count): 1}, delta)
    assert true <= claim.valid_epsilon * (1 + 1e-9)


def test_the_range_of_orders() -> None:
    assert claimed_epsilon(PAPER_STRONG, 1e-5).largest_order == pytest.approx(21)
    assert claimed_epsilon(PAPER_WEAK, 1e-5).largest_order == pytest.approx(11)
    bounded = LmoNoise(a4=0.3, uniform_low=1.0, uniform_high=2.0)  # M exists everywhere
    claim = claimed_epsilon(bounded, 1e-5)
    assert claim.valid
    assert math.isinf(claim.largest_order)
    assert claim.epsilon == claim.valid_epsilon
    fractional = LmoNoise(a1=1.0, gamma_shape=2.5, gamma_scale=0.5)  # no real root beyond
    assert claimed_epsilon(fractional, 1e-5).order < 3
    figures = lmo_figures(bounded, 100, 1e-5)
    assert not figures.claimed_valid  # it is for one number


@pytest.mark.parametrize(
    ("delta", "count", "message"), [(0.0, 1, "delta=0.0"), (1.0, 1, "delta"), (0.1, 0, "count=0")]
)
def test_claims_that_are_refused(delta: float, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        claimed_epsilon(PAPER_STRONG, delta, count)


# -- vectors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", CONVEX, ids=repr)
def test_fisher_information_and_the_variance(noise: ScalarNoise) -> None:
    """The score's variance, from samples; and Var I >= 2 for every mixture."""
    x = noise.sample(400_000, generator(9, "score"))
    step = 1e-6 * noise.width
    x = x[np.abs(x) > step]
    score = (noise.log_density(x + step) - noise.log_density(x - step)) / (2 * step)
    information = fisher_information(noise)
    assert information == pytest.approx(float((score**2).mean()), rel=0.01)
    assert noise.std**2 * information >= 2 - 1e-6
    # No more than a Laplace of the sharpest score, no less than one of the mean.
    assert information >= (1 / noise.width) ** 2 * (1 - 1e-6)


def test_fisher_information_of_known_noise() -> None:
    assert fisher_information(GaussianNoise(3.0)) == pytest.approx(1 / 9, rel=1e-7)
    assert fisher_information(LaplaceNoise(3.0)) == pytest.approx(1 / 9, rel=1e-7)
    beta = 1.4  # E[(beta |x|^(beta-1))^2] = beta^2 Gamma(2 - 1/beta) / Gamma(1/beta)
    exact = beta**2 * math.gamma(2 - 1 / beta) / math.gamma(1 / beta)
    assert fisher_information(ExponentialPowerNoise(beta, 1.0)) == pytest.approx(exact, rel=1e-5)
    assert fisher_information(StaircaseNoise(1.0, 0.5)) == math.inf


@pytest.mark.parametrize("noise", [PAPER_STRONG, PAPER_WEAK.scaled(2.0)], ids=repr)
def test_the_spread_shift_against_samples_and_its_limit(noise: LmoNoise) -> None:
    dimension, size = 64, 100_000
    rng = generator(4, "spread")
    shift = 1 / math.sqrt(dimension)
    loss = np.zeros(size)
    for _ in range(dimension):
        x = noise.sample(size, rng)
        loss += noise.log_density(x) - noise.log_density(x + shift)
    part = spread_shift(noise, dimension)
    for epsilon in (0.0, 0.1, 0.3, 0.6, 1.0):
        gains = np.maximum(-np.expm1(epsilon - loss), 0)
        error = 5 * gains.std() / math.sqrt(size) + 1e-6
        assert float(part.delta(epsilon)[0]) == pytest.approx(gains.mean(), abs=error)
    limit = gaussian_epsilon(limit_mu(noise), 1e-5)
    gaps = [abs(spread_shift(noise, d).epsilon(1e-5) / limit - 1) for d in (16, 256, 4096, 65536)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-3


@pytest.mark.parametrize("noise", CONVEX, ids=repr)
def test_every_change_of_one_number_is_below_the_bound(noise: ScalarNoise) -> None:
    """Directly from tails: H(s) <= delta of (mu s)-GDP, at tiny and at large changes."""
    mu = gaussian_bound(noise)
    for change in noise.width * np.geomspace(1e-4, 300, 60):
        x = np.concatenate([-np.geomspace(1e9, 1e-9, 4000), np.linspace(0, 0.5, 2000)])
        x = np.unique(x * np.where(x < 0, noise.width, change))
        loss = noise.log_density(x) - noise.log_density(x - change)
        # The set where the loss exceeds eps is an interval (left, right) around 0.
        peak = float(loss.max())
        for share in (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
            epsilon = share * peak
            inside = np.flatnonzero(loss > epsilon)
            left, right = x[inside[0]], x[inside[-1]]
            mass = 1 - noise.survival(-left) - noise.survival(right)
            other = noise.survival(change - right) - noise.survival(change - left)
            exact = float(mass - math.exp(epsilon) * other)
            bound = math.exp(float(log_gaussian_delta(mu * change, np.array(epsilon))))
            assert exact <= bound * (1 + 1e-9) + 1e-13


@pytest.mark.parametrize("noise", CONVEX, ids=repr)
def test_the_bound_is_tight_for_single_coordinates(noise: ScalarNoise) -> None:
    mu, limit = gaussian_bound(noise), limit_mu(noise)
    single = math.sqrt(math.pi / 2) / noise.width  # E|psi| of small changes
    assert max(limit, single) <= mu <= 1.03 * max(limit, single)
    assert gaussian_bound(noise.scaled(7.3)) == pytest.approx(mu / 7.3, rel=1e-8)
    assert gaussian_bound(GaussianNoise(3.0)) == pytest.approx(1 / 3)


@given(
    st.sampled_from(CONVEX),
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5).filter(lambda v: sum(v) > 1e-3),
    st.floats(0.3, 8),
    st.sampled_from([1e-2, 1e-5, 1e-9]),
)
@settings(max_examples=40, deadline=None)
def test_no_change_of_a_vector_costs_more_than_the_bound(
    noise: ScalarNoise, direction: list[float], size: float, delta: float
) -> None:
    scaled = noise.scaled(size / noise.width)
    norm = math.sqrt(math.fsum(v * v for v in direction))
    changes = [v / norm for v in direction if v / norm > 1e-3]
    parts = [(scalar_losses(scaled, 1.0, v, 1e-3)[0], 1) for v in changes]
    found = compose(parts)
    assert found is not None
    # The interval's own pessimism is left out: half of it for each part.
    assert found.epsilon(delta) - 1e-3 * len(parts) <= gaussian_epsilon(
        gaussian_bound(scaled), delta
    )


def test_a_vectors_event_costs_what_its_bound_costs_and_never_the_figure_of_one_number() -> None:
    mu = gaussian_bound(PAPER_STRONG)
    event = ev.vector_noise(PAPER_STRONG, 10_000, 30, 0.1)
    assert event_from_json(event_to_json(event)) == canonical(event)
    same = ev.dp_sgd(0.1, 1 / mu, 30)
    for name in ("pld", "rdp", "gdp-dominating"):
        accountant = make_accountant(name)
        assert accountant.epsilon({event: 1}, 1e-6) == accountant.epsilon({same: 1}, 1e-6)
    pld = make_accountant("pld")
    vector = pld.epsilon({ev.vector_noise(PAPER_STRONG, 10_000): 1}, 1e-10)
    number = pld.epsilon({ev.scalar_noise(PAPER_STRONG): 1}, 1e-10)
    assert vector > spread_shift(PAPER_STRONG, 10_000).epsilon(1e-10) > 5 * number
    assert pld.epsilon({ev.vector_noise(PAPER_STRONG, 1): 1}, 1e-10) == number
    # Two coordinates already may cost more than one.
    assert pld.epsilon({ev.vector_noise(PAPER_STRONG, 2): 1}, 1e-10) == vector
    replace = make_accountant("pld", Relation.REPLACE_ONE)
    assert replace.epsilon({ev.vector_noise(PAPER_STRONG, 9): 1}, 1e-6) == pytest.approx(
        gaussian_epsilon(2 * mu, 1e-6), rel=1e-3
    )


@pytest.mark.parametrize("beta", [0.2, 0.5, 0.9])
def test_noise_with_a_cusp_has_no_bound_on_vectors(beta: float) -> None:
    """No mu bounds small changes: each is exceeded, exactly, and the noise is refused by name."""
    noise = ExponentialPowerNoise(beta, 1.0)
    exceeded = []
    for mu in (1.0, 3.0, 10.0):
        for level in mu * np.geomspace(3, 30, 40):
            change = 0.5 * float(2 * level / beta) ** (-1 / (1 - beta))  # psi(2s) = 2e
            loss = (2 * change) ** beta - change**beta  # the least on (-change, 0)
            mass = change * math.exp(float(noise.log_density(change)))  # the density falls
            exact = mass * -math.expm1(change * level - loss)
            bound = float(ndtr(-level / mu + mu * change / 2))
            if exact > bound:
                exceeded.append(mu)
                break
    assert exceeded == [1.0, 3.0, 10.0]
    with pytest.raises(ValueError, match="cusp at 0 has no Gaussian bound"):
        gaussian_bound(noise)
    with pytest.raises(UnsupportedEvent, match="cusp at 0 has no Gaussian bound"):
        make_accountant("pld").epsilon({ev.vector_noise(noise, 7): 1}, 1e-6)


@pytest.mark.parametrize("noise", [*CONVEX, LmoNoise(a2=1.0, normal_low=0.5)], ids=repr)
def test_the_score_at_the_peak_is_not_below_any_difference(noise: ScalarNoise) -> None:
    x = np.append(0.0, noise.width * np.geomspace(1e-6, 1e3, 200))
    slope = -np.diff(noise.log_density(x)) / np.diff(x)
    assert np.all(slope <= noise.peak_score * (1 + 1e-6))
    if not getattr(noise, "a2", 0.0):
        assert slope[0] == pytest.approx(noise.peak_score, rel=1e-3)


def test_vectors_with_noise_that_has_no_bound_are_refused() -> None:
    for noise in (StaircaseNoise(1.0, 0.5), ExponentialPowerNoise(1.5, 1.0)):
        with pytest.raises(UnsupportedEvent, match="has no bound here"):
            make_accountant("pld").epsilon({ev.vector_noise(noise, 7): 1}, 1e-6)
        make_accountant("pld").epsilon({ev.vector_noise(noise, 1): 1}, 1e-6)
    with pytest.raises(ValueError, match="Expected Gaussian, Laplace or LMO noise"):
        gaussian_bound(StaircaseNoise(1.0, 0.5))
    for dimension in (-1, 1.5):
        with pytest.raises(ValueError, match="dimension"):
            ev.vector_noise(PAPER_STRONG, dimension)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dimension <= 100000"):
        spread_shift(PAPER_STRONG, 100_001)
    with pytest.raises(UnknownEvent, match="dimension"):
        event_from_json(
            '{"kind":"VectorNoise","family":"laplace","parameters":[["scale",1]],"dimension":-1}'
        )


def test_the_figures_of_many_coordinates_grow_from_those_of_one() -> None:
    for noise, delta in itertools.product((PAPER_STRONG, PAPER_WEAK), (1e-5, 1e-10)):
        found = [lmo_figures(noise, d, delta) for d in (1, 10, 1000, 1_000_000)]
        true = [f.true_epsilon for f in found]
        assert true == sorted(true)
        assert all(f.true_epsilon <= f.epsilon_bound for f in found)
        assert found[-1].true_epsilon == pytest.approx(found[-1].limit_epsilon, rel=2e-3)
        assert found[-1].factor >= math.sqrt(2)
