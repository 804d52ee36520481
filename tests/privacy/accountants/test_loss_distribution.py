"""Composition of discrete loss distributions against plain convolution, infinite losses included."""

from __future__ import annotations

import numpy as np
import pytest

from privacy.accountants.losses.distribution import LossDistribution, compose

INTERVAL = 0.01


def random_part(seed: int, infinity: float) -> LossDistribution:
    """Any masses on 60 losses around zero."""
    rng = np.random.default_rng(seed)
    masses = rng.random(60) ** 4
    masses *= (1 - infinity) / masses.sum()
    return LossDistribution(
        interval=INTERVAL, start=-25, probs=masses, infinity=infinity, error=0.0
    )


def by_convolution(parts: list[tuple[LossDistribution, int]], epsilon: float) -> float:
    probs, start, finite = np.ones(1), 0, 1.0
    for part, count in parts:
        for _ in range(count):
            probs = np.convolve(probs, part.probs)
            start += part.start
            finite *= 1 - part.infinity
    losses = (start + np.arange(probs.size)) * INTERVAL
    above = losses > epsilon
    return float(1 - finite - np.dot(probs[above], np.expm1(epsilon - losses[above])))


@pytest.mark.parametrize("infinity", [0.0, 1e-9, 1e-4, 0.02])
@pytest.mark.parametrize("counts", [(1, 0), (7, 0), (5, 4), (30, 1)])
def test_delta_is_that_of_the_convolution_and_never_below(
    infinity: float, counts: tuple[int, int]
) -> None:
    parts = [(random_part(seed, infinity), count) for seed, count in enumerate(counts) if count > 0]
    composed = compose(parts)
    for epsilon in (0.0, 0.05, 0.3, 1.0, 4.0, 50.0):
        truth = by_convolution(parts, epsilon)
        found = float(composed.delta(epsilon)[0])
        assert found >= truth * (1 - 1e-12) - 1e-15
        assert found <= truth * (1 + 1e-9) + 1e-12
        if truth > 1e-8:
            # The epsilon at this delta brings the same delta back.
            assert by_convolution(parts, composed.epsilon(found)) <= found * (1 + 1e-9)


def test_no_epsilon_for_a_delta_below_the_infinite_mass() -> None:
    """1 - (1 - 1e-4)^30 of the mass has an infinite loss, whatever epsilon is granted."""
    composed = compose([(random_part(1, 1e-4), 30)])
    lost = 1 - (1 - 1e-4) ** 30
    assert composed.epsilon(lost * 0.999) == np.inf
    assert np.isfinite(composed.epsilon(lost * 1.001))
