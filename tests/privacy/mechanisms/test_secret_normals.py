"""No two numbers of one secret draw tell of each other: entries of a gradient have noise of their own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from privacy.mechanisms.gaussian import gaussian
from privacy.randomness import SecretSource

SIZES = [2, 7, 1000, 32769, 100_001]  # a pair, an odd number, and around the chunks of 2^15


@pytest.mark.parametrize("size", SIZES)
def test_no_number_is_drawn_twice(size: int) -> None:
    """Nor with its sign turned: of 10^5 normals of 53 bits hardly two are equal."""
    for values in (SecretSource().standard_normal(size), gaussian(size, 1.0, SecretSource())):
        assert values.shape == (size,)
        assert len(np.unique(np.abs(values))) >= size - 1
    assert len(np.unique(SecretSource().random(size))) >= size - 1


@pytest.mark.parametrize("lag", [1, 2, 4, 1 << 13, 1 << 14, 1 << 15, 50_000])
def test_neighbours_and_pairs_are_uncorrelated(lag: int) -> None:
    """Of the numbers and of their squares, at distances where a sampler in pairs could repeat itself."""
    values = SecretSource().standard_normal(100_000)
    limit = stats.norm.isf(1e-7) / np.sqrt(values.size - lag)
    a, b = values[:-lag], values[lag:]
    assert abs(np.corrcoef(a, b)[0, 1]) < limit
    # The two numbers of a pair share their radius only: at the pairs' distance squares must not show it.
    assert abs(np.corrcoef(a**2, b**2)[0, 1]) < 1.5 * limit
