"""Construct privacy events: one dp_accounting DpEvent for each kind of release.

An event is one use of a mechanism on private data. `serialization` checks and writes them, `multiset` adds them up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent

from privacy.events.kinds import (
    DiscreteGaussianDpEvent,
    DiscreteGaussianSumDpEvent,
    NoGuaranteeDpEvent,
    PureDpEvent,
    ScalarNoiseDpEvent,
    VectorNoiseDpEvent,
    pairs,
)
from privacy.events.serialization import canonical
from privacy.mechanisms.scalar_noise import ScalarNoise


def gaussian(noise_multiplier: float, count: int = 1) -> DpEvent:
    """Return the event of `count` Gaussian mechanisms; noise_multiplier is std / sensitivity, > 0."""
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(
            f"Expected a finite noise_multiplier > 0, got noise_multiplier={noise_multiplier} "
            "(a release without noise is no_guarantee)"
        )
    return _repeated(dp.GaussianDpEvent(float(noise_multiplier)), count)


def discrete_gaussian(sigma: float, sensitivity: int = 1, count: int = 1) -> DpEvent:
    """Return the event of `count` whole numbers with discrete Gaussian noise, each of its own sensitivity.

    Args:
      sigma: The parameter of the noise, finite and > 0.
      sensitivity: The most that one record contributes to each number; whole, >= 1.
      count: How many numbers one record may change; whole, >= 0.

    Raises:
      ValueError: A parameter is out of range.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"Expected a finite sigma > 0, got sigma={sigma}")
    if isinstance(sensitivity, bool) or sensitivity != int(sensitivity) or sensitivity < 1:
        raise ValueError(f"Expected a whole sensitivity >= 1, got sensitivity={sensitivity}")
    return _repeated(DiscreteGaussianDpEvent(float(sigma), int(sensitivity)), count)


def discrete_gaussian_sum(
    sigma: float, shares: int, sensitivity: float, count: int = 1, sampling_rate: float = 1.0
) -> DpEvent:
    """Return the event of `count` sums of integer vectors with `shares` shares of discrete Gaussian noise.

    Args:
      sigma: Parameter of one share, 4 to 2^40.
      shares: Number of shares that the adversary does not know, 1 to 10^4.
      sensitivity: L2 norm that one record moves the integers by at most, rounding included, 1 to 2^100.
      count, sampling_rate: As of `scalar_noise`.

    Raises:
      ValueError: A parameter is out of range.
    """
    one = DiscreteGaussianSumDpEvent(float(sigma), shares, float(sensitivity))
    return _repeated(one, count, sampling_rate)


def pure_dp(epsilon: float) -> DpEvent:
    """Return the event of a mechanism that is (epsilon, 0)-DP under zero-out and add-or-remove-one, such as a noisy
    choice.

    Raises:
      ValueError: epsilon is not finite and > 0.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"Expected a finite epsilon > 0, got epsilon={epsilon}")
    return PureDpEvent(float(epsilon))


def scalar_noise(noise: ScalarNoise, count: int = 1, sampling_rate: float = 1.0) -> DpEvent:
    """Return the event of `count` real numbers, each with fresh additive noise of a family.

    Args:
      noise: The noise in units of the sensitivity (the most that one record contributes).
      count: How many are released: numbers that one record changes, or steps; whole, >= 0.
      sampling_rate: Probability that a record is in the Poisson sample that a number is made of,
        drawn again for each of them; 0 < rate <= 1.

    Raises:
      ValueError: A parameter is out of range.
    """
    return _repeated(ScalarNoiseDpEvent(noise.family, pairs(noise)), count, sampling_rate)


def vector_noise(noise: ScalarNoise, dimension: int, count: int = 1, rate: float = 1.0) -> DpEvent:
    """Return the event of `count` vectors with independent scalar noise on each coordinate.

    Args:
      noise: In units of the L2 norm that one record contributes at most.
      dimension: Number of coordinates, whole, >= 1; 0 for any number.
      count, rate: As `count` and `sampling_rate` of `scalar_noise`.

    Raises:
      ValueError: A parameter is out of range.
    """
    if isinstance(dimension, bool) or dimension != int(dimension) or dimension < 0:
        raise ValueError(f"Expected a whole dimension >= 0, got dimension={dimension}")
    one = VectorNoiseDpEvent(noise.family, pairs(noise), int(dimension))
    return _repeated(one, count, rate)


def _repeated(event: DpEvent, count: int, sampling_rate: float = 1.0) -> DpEvent:
    """Return `count` copies of an event, each on an independent Poisson sample."""
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"Expected 0 < sampling_rate <= 1, got sampling_rate={sampling_rate}")
    if isinstance(count, bool) or count != int(count) or count < 0:
        raise ValueError(f"Expected a whole count >= 0, got count={count}")
    if sampling_rate < 1:
        event = dp.PoissonSampledDpEvent(float(sampling_rate), event)
    return event if count == 1 else dp.SelfComposedDpEvent(event, int(count))


def dp_sgd(sampling_rate: float, noise_multiplier: float, steps: int) -> DpEvent:
    """Return the event of `steps` DP-SGD steps: Poisson sampling, then the Gaussian mechanism.

    Args:
      sampling_rate: Probability that an example is in a step's sample, 0 < rate <= 1. At rate 1 it
        is the plain Gaussian mechanism.
      noise_multiplier: Standard deviation over L2 sensitivity, > 0.
      steps: Whole, >= 0.

    Raises:
      ValueError: A parameter is out of range.
    """
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"Expected 0 < sampling_rate <= 1, got sampling_rate={sampling_rate}")
    if isinstance(steps, bool) or steps != int(steps) or steps < 0:
        raise ValueError(f"Expected a whole number of steps >= 0, got steps={steps}")
    step = gaussian(noise_multiplier)
    if sampling_rate < 1:
        step = dp.PoissonSampledDpEvent(float(sampling_rate), step)
    return step if steps == 1 else dp.SelfComposedDpEvent(step, int(steps))


def truncated_sgd(
    size: int, sampling_rate: float, most: int, noise_multiplier: float, steps: int = 1
) -> DpEvent:
    """Return the event of `steps` Gaussian mechanisms, each on a Poisson sample that is cut to `most` records.

    Args:
      size: Number of records, >= 1; public.
      sampling_rate: Probability that a record is drawn, 0 < rate <= 1.
      most: Records that are kept at most, chosen uniformly at random, >= 1.
      noise_multiplier: Standard deviation over L2 sensitivity, > 0.
      steps: Whole, >= 0.

    Raises:
      ValueError: A parameter is out of range.
    """
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"Expected 0 < sampling_rate <= 1, got sampling_rate={sampling_rate}")
    if size < 1 or most < 1:
        raise ValueError(f"Expected size >= 1 and most >= 1, got size={size}, most={most}")
    gaussian(noise_multiplier)  # checks it
    one = dp.TruncatedSubsampledGaussianDpEvent(
        int(size), float(sampling_rate), int(most), float(noise_multiplier)
    )
    return one if steps == 1 else dp.SelfComposedDpEvent(one, int(steps))


def poisson_sampled(sampling_rate: float, events: Iterable[DpEvent]) -> DpEvent:
    """Return the event of several mechanisms on *one* Poisson sample, each of which may know the ones before.

    Where all are Gaussian, `privacy.events.multiset.multiset` accounts for them exactly as one: adaptively
    composed Gaussian mechanisms of multipliers s_i on the same data are dominated by the Gaussian
    mechanism with 1/s^2 = sum_i 1/s_i^2 (their pair of worst-case distributions is a product of normals, which a rotation
    turns into one; Dong, Roth and Su 2019, corollary 2.1), and sampling amplifies whatever it is (Zhu,
    Dong and Wang 2022, theorem 11).

    Args:
      sampling_rate: Probability that a record is in the sample, 0 < rate <= 1.
      events: Of the mechanisms on the sample, at least one.

    Raises:
      ValueError: A rate out of range, or no event.
    """
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"Expected 0 < sampling_rate <= 1, got sampling_rate={sampling_rate}")
    parts = tuple(events)
    if not parts:
        raise ValueError("Expected at least one event on the sample, got none")
    inner = parts[0] if len(parts) == 1 else dp.ComposedDpEvent(parts)
    return canonical(dp.PoissonSampledDpEvent(float(sampling_rate), inner))


def no_guarantee(reason: str) -> DpEvent:
    """Return the event of a release without privacy; epsilon is then infinite. The reason is recorded."""
    if not reason:
        raise ValueError("Expected a reason for a release without privacy, got an empty one")
    return NoGuaranteeDpEvent(reason)
