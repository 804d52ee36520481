"""Scalar noise that several test files share, and an accounting of it that shares no code."""

from __future__ import annotations

import math

import numpy as np

from privacy.mechanisms.scalar_noise import (
    ExponentialPowerNoise,
    GaussianNoise,
    LaplaceNoise,
    LmoNoise,
    ScalarNoise,
    StaircaseNoise,
)

# The settings of the LMO-DP paper (arXiv 2405.18776) for epsilon 0.3 and 3.
PAPER_STRONG = LmoNoise(
    a1=0.1,
    a3=0.1,
    a4=0.1,
    gamma_shape=1.0,
    gamma_scale=0.5,
    exponential_rate=5.0,
    uniform_low=1.0,
    uniform_high=2.0,
)
PAPER_WEAK = LmoNoise(
    a1=0.1,
    a3=0.1,
    a4=0.9,
    gamma_shape=2.0,
    gamma_scale=1.0,
    exponential_rate=5.0,
    uniform_low=2.0,
    uniform_high=3.0,
)
# Density of u positive at 0: a tail like 1 / x^1.7.
HEAVY = LmoNoise(a1=0.3, gamma_shape=0.7, gamma_scale=2.0, a2=0.5, normal_mean=0.3, normal_std=0.6)
NOISES: list[ScalarNoise] = [
    LaplaceNoise(1.7),
    GaussianNoise(1.3),
    ExponentialPowerNoise(1.4, 2.0),
    ExponentialPowerNoise(0.7, 1.2),
    StaircaseNoise(0.8, 0.4),
    PAPER_STRONG,
    PAPER_WEAK.scaled(3.0),
    HEAVY,
]


def brute_force_epsilon(
    noise: ScalarNoise, rate: float, count: int, delta: float, bins: int = 100_000
) -> tuple[float, float]:
    """(lower, upper) epsilon of `count` releases: the line in equal bins, losses rounded both ways.

    The density in a bin is between its ends' values, so the loss of each bin lies between differences
    of these; composition is direct convolution by repeated squaring.
    """
    end = 2.0
    while float(noise.survival(end)) > delta * 1e-4 / count and end < 1e7 * noise.width:
        end *= 1.3
    core = np.linspace(-6 * noise.width - 2, 6 * noise.width + 2, bins)
    far = np.geomspace(6 * noise.width + 2, max(end, 8 * noise.width + 3), bins // 4)
    x = np.unique(np.concatenate([-far, core, far, [0.0, 1.0], *_jumps(noise, end)]))
    survival = noise.survival(x)
    below = 1 - survival
    zero = np.where(x[1:] > 0, survival[:-1] - survival[1:], below[1:] - below[:-1])
    shifted = noise.survival(x - 1)
    one = np.where(x[1:] > 1, shifted[:-1] - shifted[1:], (1 - shifted)[1:] - (1 - shifted)[:-1])
    inner = np.nextafter(x[:-1], np.inf), np.nextafter(x[1:], -np.inf)
    ratio = [noise.log_density(e - 1) - noise.log_density(e) for e in inner]
    low, high = np.minimum(*ratio), np.maximum(*ratio)
    answers = []
    for pessimistic in (False, True):
        worst = 0.0
        for add in (False, True):
            mass = zero if add else (1 - rate) * zero + rate * one
            sign = -1 if add else 1
            ends = sign * np.log1p(rate * np.expm1(high if pessimistic ^ add else low))
            loss = ends
            lost = 1 - math.fsum(mass)
            worst = max(worst, _epsilon(mass, loss, count, delta, pessimistic, max(lost, 0.0)))
        answers.append(worst)
    return answers[0], answers[1]


def _jumps(noise: ScalarNoise, end: float) -> list[np.ndarray]:
    at = noise.breaks(end)
    return [at, -at, 1 - at, 1 + at]


def _epsilon(
    mass: np.ndarray, loss: np.ndarray, count: int, delta: float, pessimistic: bool, lost: float
) -> float:
    span = float(loss.max() - loss.min())
    step = max(span / 20_000, 1e-12)
    places = loss / step
    index = (np.ceil(places - 1e-9) if pessimistic else np.floor(places + 1e-9)).astype(np.int64)
    first = int(index.min())
    probs = np.bincount(index - first, np.maximum(mass, 0.0))
    size = (probs.size - 1) * count + 1
    length = 2 ** math.ceil(math.log2(size))
    total = np.fft.irfft(np.fft.rfft(probs, length) ** count, length)[:size]
    losses = (first * count + np.arange(size)) * step
    infinite = count * lost if pessimistic else 0.0
    low, high = 0.0, float(max(losses.max(), 0.0))
    for _ in range(60):
        middle = (low + high) / 2
        keep = losses > middle
        found = float(total[keep] @ -np.expm1(middle - losses[keep])) + infinite
        low, high = (middle, high) if found > delta else (low, middle)
    return high
