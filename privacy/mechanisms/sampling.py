"""Poisson sampling: the sampler that amplification by sampling assumes."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from privacy.randomness import RandomSource

SMALLEST_RATE = 2.0**-53
"""The smallest rate above 0 that `poisson_sample` realises: what is below is never sampled."""


def poisson_sample(n: int, rate: float, rng: RandomSource) -> npt.NDArray[np.int64]:
    """Include each of n records independently with probability `rate`.

    The size of the sample is random and may be 0; a step on an empty sample must still release its
    noise. The divisor of a mean must be the expected size, n * rate, and not the realised one.

    The probability that is realised is floor(rate * 2^53) / 2^53, never above `rate`: a uniform number
    is a multiple k of 2^-53, and a comparison with `rate` itself would include a record for the
    ceil(rate * 2^53) smallest k. A lower rate q' <= q costs no more: the output of the sampled
    mechanism at q' is that at q, replaced with probability 1 - q'/q by a draw without the record, which
    is post-processing of the dominating pair ((1 - q)P + qQ, P).

    Args:
      n: Number of records, >= 0.
      rate: Probability, 0 <= rate <= 1; the `sampling_probability` of the step's event.
      rng: The stream to draw from.

    Returns:
      int64, the sorted indices of the sample.

    Raises:
      ValueError: n is negative or rate is not a probability.
    """
    if n < 0:
        raise ValueError(f"Expected n >= 0, got n={n}")
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"Expected 0 <= rate <= 1, got rate={rate}")
    threshold = math.floor(rate * 2.0**53) * 2.0**-53
    return np.flatnonzero(rng.random(n) < threshold).astype(np.int64)


def truncated_poisson_sample(
    n: int, rate: float, most: int, rng: RandomSource
) -> npt.NDArray[np.int64]:
    """Return a Poisson sample of at most `most` records; of a larger one a uniformly random subset is kept.

    The random numbers drawn are the same in number whatever is sampled. Each record has a random key, and
    the smallest keys are kept; keys are 53 bits, so that two of n are equal with probability below n^2 2^-54,
    and then the earlier record is kept.

    Args:
      n, rate: As for `poisson_sample`.
      most: The most records that are kept, >= 1; `truncated_batch_size` of the step's event.
      rng: The stream to draw from.

    Returns:
      int64, the sorted indices of the sample.

    Raises:
      ValueError: As for `poisson_sample`, or most < 1.
    """
    if most < 1:
        raise ValueError(f"Expected most >= 1, got most={most}")
    drawn = poisson_sample(n, rate, rng)
    keys = rng.random(n)
    kept = drawn[np.argsort(keys[drawn], kind="stable")[:most]]
    return np.sort(kept)
