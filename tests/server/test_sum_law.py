"""The bound on an honest sum: held by the longest honest sums, and no longer than it has to be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedllm.training.mechanism import make_mechanism
from fedllm.training.sum_share.mechanism import SumShare
from privacy.randomness import generator
from privacy.secure_sum.shares import draw_share
from server.robust.sum_law import sum_limit

NAMES = ("a", "b", "c")
SUM = {"privacy.noise_by": "sum", "client.local_steps": 1}


def made(settings: Any, dimension: int = 400) -> SumShare:
    mechanism = make_mechanism(settings, sampling_rate=0.1, noise_multiplier=0.8)
    assert isinstance(mechanism, SumShare)
    return mechanism.among(len(NAMES), dimension)


@pytest.mark.parametrize("unit", ["example", "client"])
def test_noise_and_aligned_records_are_within_the_bound(
    tiny_settings: Callable[..., Any], unit: str
) -> None:
    """All records of all silos point one way, and the noise is real."""
    settings = tiny_settings(**SUM, **{"privacy.unit": unit})
    mechanism = made(settings)
    plan = mechanism.shares
    limit = sum_limit(mechanism, [(settings.client, 60)] * 3, rounds=100)
    assert limit is not None
    records = 3 if unit == "client" else 3 * settings.client.batch_size
    for seed in range(20):
        noise = sum(draw_share(400, plan.sigma, generator(seed, name)) for name in NAMES)
        vector = noise.astype(np.float64)
        vector[0] += records * math.ldexp(1.0, -plan.exponent)
        length = float(np.linalg.norm(vector)) * 2.0**plan.exponent
        assert length <= limit
        assert length > 0.15 * limit, "and the bound says something"


def test_noise_alone_is_longer_than_the_records_of_a_wide_update(
    tiny_settings: Callable[..., Any],
) -> None:
    settings = tiny_settings(**SUM, **{"privacy.unit": "client"})
    mechanism = made(settings, 200_000)
    limit = sum_limit(mechanism, [(settings.client, None)] * 3, rounds=1)
    assert limit is not None
    std = math.ldexp(mechanism.shares.sigma, mechanism.shares.exponent) * math.sqrt(3)
    assert std * math.sqrt(200_000) < limit < std * math.sqrt(200_000) * 1.05


def test_it_needs_sizes_where_a_sampling_rate_is_given(tiny_settings: Callable[..., Any]) -> None:
    settings = tiny_settings(**SUM, **{"client.sampling_rate": 0.1, "data.sizes": "private"})
    mechanism = made(settings)
    assert sum_limit(mechanism, [(settings.client, None)] * 3, rounds=1) is None
