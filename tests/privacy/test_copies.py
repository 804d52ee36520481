"""What copies of a record cost: the mixture against quadrature, other kinds, refusals."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from dp_accounting import dp_event as dp
from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism
from scipy.stats import binom, norm

from privacy.accountants import make_accountant
from privacy.accountants.losses.mixture import Mixture
from privacy.calibration import calibrate_noise_multiplier
from privacy.copies import MOST, UnknownCopies, events_of_copies
from privacy.events import constructors as ev
from privacy.events.kinds import DiscreteGaussianDpEvent
from privacy.events.multiset import multiset
from privacy.events.serialization import event_from_json, event_to_json
from privacy.mechanisms.scalar_noise import LaplaceNoise

DELTA = 1e-5
PLD = make_accountant("pld")


def cost(rate: float, noise: float, steps: int, copies: int) -> float:
    return PLD.epsilon(events_of_copies(multiset(ev.dp_sgd(rate, noise, steps)), copies), DELTA)


def hockey_stick(p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    """Both directions of the divergence of two densities on cells, times the cells' size."""
    return max(
        float(np.maximum(p - math.exp(epsilon) * q, 0).sum()),
        float(np.maximum(q - math.exp(epsilon) * p, 0).sum()),
    )


def test_reference_figures() -> None:
    """Rate .02, noise 1, 60 steps: one copy 1.209, two 2.557, four 5.380 (an independent account)."""
    found = [cost(0.02, 1.0, 60, copies) for copies in (1, 2, 4)]
    assert found == pytest.approx([1.209, 2.557, 5.380], abs=1e-3)
    for copies, epsilon in zip((2, 4), found[1:], strict=True):
        assert epsilon > copies * found[0]  # at the same delta: more than k times
        shifted = make_accountant("pld").epsilon(multiset(ev.dp_sgd(0.02, 1.0, 60)), DELTA / 1e3)
        assert epsilon < copies * shifted + 1  # and not without bound


def test_one_copy_is_the_event_itself() -> None:
    events = multiset(ev.dp_sgd(0.02, 1.0, 60))
    assert events_of_copies(events, 1) == events
    as_mixture = dp.MixtureOfGaussiansDpEvent(1.0, (0.0, 1.0), (0.98, 0.02))
    for epsilon in (0.0, 0.3, 1.2):
        expected = PLD.delta(events, epsilon)
        assert PLD.delta({as_mixture: 60}, epsilon) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("rate", "noise", "copies"), [(0.1, 0.8, 2), (0.3, 1.5, 4), (0.02, 0.6, 3), (0.9, 3.0, 7)]
)
def test_one_and_two_steps_against_quadrature(rate: float, noise: float, copies: int) -> None:
    events = events_of_copies(multiset(ev.dp_sgd(rate, noise, 1)), copies)
    weights = binom.pmf(np.arange(copies + 1), copies, rate)
    x = np.arange(-9 * noise, copies + 9 * noise, noise / 60)
    p = sum(w * norm.pdf(x, j, noise) for j, w in enumerate(weights)) * noise / 60
    q = norm.pdf(x, 0, noise) * noise / 60
    for epsilon in (0.0, 0.1, 1.0, 2.5):
        for steps, one, other in (
            (1, p, q),
            (2, np.outer(p, p).ravel(), np.outer(q, q).ravel()),
        ):
            exact = hockey_stick(one, other, epsilon)
            got = PLD.delta(Counter(dict.fromkeys(events, steps)), epsilon)
            assert got >= exact * (1 - 2e-3) - 1e-12
            assert got <= exact * (1 + 5e-3) + 1e-8


def test_copies_that_contribute_different_vectors_cost_no_more() -> None:
    """Two and three vectors of norm at most 1 in the plane, in both directions, by quadrature."""
    rng = np.random.default_rng(0)
    noise, rate = 1.0, 0.2
    axis = np.arange(-9, 9, 0.1)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)

    def density(centre: np.ndarray) -> np.ndarray:
        return np.exp(-((grid - centre) ** 2).sum(-1) / (2 * noise**2)) * 0.01 / (2 * math.pi)

    for copies, _ in itertools.product((2, 3), range(6)):
        vectors = rng.normal(size=(copies, 2))
        vectors /= np.maximum(1.0, np.linalg.norm(vectors, axis=1))[:, None]
        p = np.zeros_like(grid[..., 0])
        for chosen in itertools.product((0, 1), repeat=copies):
            weight = rate ** sum(chosen) * (1 - rate) ** (copies - sum(chosen))
            p += weight * density(np.array(chosen) @ vectors)
        q = density(np.zeros(2))
        events = events_of_copies(multiset(ev.dp_sgd(rate, noise, 1)), copies)
        for epsilon in (0.0, 0.2, 0.8):
            assert hockey_stick(p, q, epsilon) <= PLD.delta(events, epsilon) * (1 + 1e-3) + 1e-9


def test_agrees_with_dp_accountings_mixture() -> None:
    shifts, weights = (0.0, 1.0, 3.0), (0.7, 0.2, 0.1)
    reference = from_mixture_gaussian_mechanism(
        2.0, list(shifts), list(weights), value_discretization_interval=0.01
    )
    mixture = dp.MixtureOfGaussiansDpEvent(2.0, shifts, weights)
    for epsilon in (0.0, 0.5, 2.0):
        expected = reference.get_delta_for_epsilon(epsilon)
        assert PLD.delta({mixture: 1}, epsilon) == pytest.approx(expected, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("noise", [1e-2, 0.3, 30.0, 1e6])
@pytest.mark.parametrize("rate", [1e-6, 0.5, 0.999])
def test_extreme_mixtures_give_a_number_not_below_one_copy(noise: float, rate: float) -> None:
    one, two = (cost(rate, noise, 1000, copies) for copies in (1, 2))
    assert one <= two or one == pytest.approx(two, rel=1e-6)
    mixture = Mixture(noise, (0.0, 1.0, 2.0), ((1 - rate) ** 2, 2 * rate * (1 - rate), rate**2))
    ends = mixture.loss(np.array([-10 * noise, mixture.top()]))
    losses = np.linspace(*ends, 500)[1:]
    outputs = mixture.output(losses)
    assert np.all(np.diff(outputs) >= 0)
    assert mixture.loss(outputs) == pytest.approx(losses, rel=1e-9, abs=1e-15)


def test_other_kinds() -> None:
    laplace = LaplaceNoise(3.0)
    sampled = ev.scalar_noise(laplace, sampling_rate=0.1)
    expected = {
        ev.gaussian(2.0): ev.gaussian(2.0 / 3),
        DiscreteGaussianDpEvent(5.0, 2): DiscreteGaussianDpEvent(5.0, 6),
        ev.pure_dp(0.25): ev.pure_dp(0.75),
        dp.LaplaceDpEvent(3.0): dp.LaplaceDpEvent(1.0),
        ev.scalar_noise(laplace): ev.scalar_noise(LaplaceNoise(1.0)),
        ev.vector_noise(laplace, 5): ev.vector_noise(LaplaceNoise(1.0), 5),
        ev.no_guarantee("raw"): ev.no_guarantee("raw"),
    }
    for one, three in expected.items():
        assert events_of_copies({one: 2}, 3) == multiset({three: 2})
    ((found, _),) = events_of_copies({sampled: 1}, 3).items()
    assert found.sampling_probability == pytest.approx(1 - 0.9**3)
    # Sampled Laplace noise: the bound is not below the truth, by quadrature.
    x = np.arange(-60, 70, 1e-3)
    density = [np.exp(-np.abs(x - j) / 3) / 6 * 1e-3 for j in range(4)]
    p = sum(w * d for w, d in zip(binom.pmf(np.arange(4), 3, 0.1), density, strict=True))
    for epsilon in (0.0, 0.05, 0.2):
        assert hockey_stick(p, density[0], epsilon) <= PLD.delta({found: 1}, epsilon) + 1e-9


@pytest.mark.parametrize(
    "event",
    [
        dp.TruncatedSubsampledGaussianDpEvent(100, 0.1, 16, 1.0),
        dp.RandomizedResponseDpEvent(0.3, 4),
        dp.SampledWithoutReplacementDpEvent(100, 10, dp.GaussianDpEvent(1.0)),
        dp.MixtureOfGaussiansDpEvent(1.0, (0.0, 1.0), (0.5, 0.5)),
        dp.PoissonSampledDpEvent(0.1, ev.pure_dp(0.1)),
    ],
)
def test_what_is_not_proven_is_refused_by_name(event: dp.DpEvent) -> None:
    with pytest.raises(
        UnknownCopies, match="2 copies of a record cost is not proven for the event"
    ):
        events_of_copies({event: 1}, 2)
    assert events_of_copies({event: 1}, 1) == multiset({event: 1})


@pytest.mark.parametrize("copies", [0, -1, 1.5, True, MOST + 1])
def test_bad_numbers_of_copies(copies: float) -> None:
    with pytest.raises(ValueError, match="Expected a whole number of copies"):
        events_of_copies({ev.gaussian(1.0): 1}, copies)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shifts", "weights"),
    [((0.0, 0.0), (0.5, 0.5)), ((0.0, 1.0), (0.5, 0.6))],
)
def test_a_mixture_that_is_none_is_refused(
    shifts: tuple[float, ...], weights: tuple[float, ...]
) -> None:
    event = dp.MixtureOfGaussiansDpEvent(1.0, shifts, weights)
    assert "Expected shifts >= 0" in str(PLD.why_unsupported({event: 1}))


def test_the_event_is_written_and_read() -> None:
    ((event, _),) = events_of_copies(multiset(ev.dp_sgd(0.02, 1.0, 60)), 4).items()
    assert event_from_json(event_to_json(event)) == event


def test_calibration_for_copies_meets_the_target_with_more_noise() -> None:
    given = {"epsilon": 2.0, "delta": DELTA, "sampling_rate": 0.02, "steps": 60}
    one, two = (calibrate_noise_multiplier(**given, copies=n) for n in (1, 2))
    assert two.noise_multiplier > 1.2 * one.noise_multiplier
    assert 1.99 <= cost(0.02, two.noise_multiplier, 60, 2) <= 2.0
