"""Whether the numbers of a step are better released as one vector, or each with noise of its own.

Training through outputs alone releases n numbers a step, of which each record has a row x = (x_1 ... x_n). Two ways to
release their sums at the same (epsilon, delta):

* as a vector: rows clipped to L2 norm C, Gaussian noise of standard deviation sigma C: one event a step;
* as numbers: each x_k clipped to [-c, c], noise of standard deviation s c on each: n events a step.

Their noise multipliers cannot be compared as they are, since one clips a row and the other a number. What counts is
the noise over the *signal*: how far the expected sum moves when the mean of the rows does. For rows of
independent normal entries of standard deviation r (differences of losses along random signs are about that, for
a locally linear loss) it is, by Stein's lemma, with t = C / r,

    vector: E[|x|^2 min(1, t/|x|)] / n = F_{n+2}(t^2) + t E|x| / n (1 - F_{n+1}(t^2)),   number: erf(c / (r sqrt 2)),

|x| of the chi law with n degrees of freedom and F of chi-square's. Where most rows are clipped (t to 0) both are
equal for c = C / `clip_ratio`(n), which lies between 1 (n = 1) and 0.798 sqrt(n) (n large). That is the bound that
numbers get. For rows that are hardly clipped such numbers lose up to a fifth of the signal; `least_signal` is what they
keep at worst, and numbers are chosen only where they disturb less even then.

This decides what is *useful*. What is guaranteed does not depend on it: whichever is chosen is calibrated and
accounted as what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from dp_accounting.dp_event import DpEvent
from scipy.special import erf
from scipy.stats import chi2

from privacy.calibration import calibrate_noise_multiplier
from privacy.event_counts import multiset
from privacy.event_json import event_to_json
from privacy.noise_question import NoiseQuestion
from privacy.noise_search import search_noise
from privacy.scalar_noise import ScalarNoise

FAMILIES = ("laplace", "exponential-power", "staircase")
"""Tried beside Gaussian noise on each number."""
LEAST_GAIN = 0.02
"""Relative gain below which the vector stays: one event a step, and one batch for all its numbers."""
_NONE: Mapping[DpEvent, int] = MappingProxyType({})
_GRID = 2000


@dataclass(frozen=True)
class NumberChoice:
    """How numbers are released.

    Attributes:
      noise: On each number of sensitivity 1; None: Gaussian noise on the vector.
      vector_std: Noise of the vector over its clipping norm.
      stds: Of each family's noise on a number over the number's bound, at the same (epsilon, delta).
      ratios: Noise over signal of each family at worst, relative to the vector's: below 1 it disturbs less.
      clip_ratio: The vector's clipping norm over the bound of a number.
    """

    noise: ScalarNoise | None
    vector_std: float
    stds: dict[str, float]
    ratios: dict[str, float]
    clip_ratio: float


def clip_ratio(numbers: int) -> float:
    """The clipping norm of a vector of n numbers over the bound of each that keeps as much signal, where
    most is clipped: sqrt(2 / pi) n / E|x|.

    Raises:
      ValueError: Fewer than one number.
    """
    return math.sqrt(2 / math.pi) * numbers / _mean_norm(numbers)


def vector_signal(numbers: int, reach: float) -> float:
    """Share of the rows' mean that clipping the row leaves.

    Args:
      reach: The clipping norm over the standard deviation of the row's entries, > 0.
    """
    within = float(chi2.cdf(reach**2, numbers + 2))
    beyond = float(chi2.sf(reach**2, numbers + 1))
    return within + reach * _mean_norm(numbers) / numbers * beyond


def number_signal(reach: float) -> float:
    """The same of a number that is clipped by itself, with its own bound."""
    return float(erf(reach / math.sqrt(2)))


@lru_cache(maxsize=256)
def least_signal(numbers: int) -> float:
    """The least, over all sizes of the rows, of the signal that numbers keep over what the vector keeps, where
    their bound is the clipping norm over `clip_ratio`; at most 1."""
    ratio = clip_ratio(numbers)
    reaches = math.sqrt(numbers) * np.exp(np.linspace(math.log(0.02), math.log(20), _GRID))
    kept = (number_signal(t / ratio) / vector_signal(numbers, t) for t in reaches.tolist())
    return min(1.0, *kept)


def choose_release(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    numbers: int,
    beside: Mapping[DpEvent, int] = _NONE,
    cache_dir: Path | None = None,
) -> NumberChoice:
    """The release of least noise over signal, at the same (epsilon, delta) under zero-out.

    Nothing is drawn at random and nothing private is asked: the same question has the same answer.

    Args:
      epsilon, delta: Target of all steps, and of what is `beside`.
      sampling_rate: Of each record in a step; numbers that are released singly have a draw each.
      steps: Vectors that are released.
      numbers: Entries of each.
      beside: What else the target is for.
      cache_dir: Where calibrations and searches are kept; None keeps none.

    Raises:
      ValueError: A parameter is out of range, or no noise reaches the target.

    Guarantee: `steps * numbers` events `scalar_noise(noise)` at the sampling rate (without noise: `steps` events
    `gaussian(vector_std)`) and what is `beside` are (epsilon, delta)-DP, the numbers' bound being what it may be.
    """
    ratio = clip_ratio(numbers)
    others = multiset(beside)
    vector = calibrate_noise_multiplier(
        epsilon=epsilon,
        delta=delta,
        sampling_rate=sampling_rate,
        steps=steps,
        other_events=others,
        cache_dir=None if cache_dir is None else cache_dir / "calibration",
    ).noise_multiplier
    question = NoiseQuestion(
        epsilon=epsilon,
        delta=delta,
        steps=steps * numbers,
        sampling_rate=sampling_rate,
        beside=tuple(sorted((event_to_json(event), n) for event, n in others.items())),
    )
    searched = None if cache_dir is None else cache_dir / "noise"
    found = search_noise(question, searched, families=FAMILIES, light=True)
    stds = {name: candidate.noise.std for name, candidate in found.candidates.items()}
    advantage = ratio * least_signal(numbers)
    ratios = {name: std / (advantage * vector) for name, std in stds.items()}
    best = found.winner.noise
    chosen = best if ratios[best.family] <= 1 - LEAST_GAIN else None
    return NumberChoice(chosen, vector, stds, ratios, ratio)


def _mean_norm(numbers: int) -> float:
    """E|x| of n independent standard normal numbers."""
    if numbers < 1:
        raise ValueError(f"Expected numbers >= 1, got numbers={numbers}")
    half = numbers / 2
    return math.sqrt(2) * math.exp(math.lgamma(half + 0.5) - math.lgamma(half))
