"""Poisson sampling: the sampler that amplification by sampling is stated for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def poisson_sample(n: int, rate: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Include each of n records independently with probability `rate`.

    The size of the sample is random and may be 0; a step on an empty sample must still release its
    noise. The divisor of a mean must be the expected size, n * rate, and not the realised one.

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
    return np.flatnonzero(rng.random(n) < rate).astype(np.int64)
