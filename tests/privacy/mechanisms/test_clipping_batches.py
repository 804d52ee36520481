"""Clipping a batch is clipping each example alone: no example's bound depends on the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.mechanisms.clipping import clip_and_sum


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    count=st.integers(2, 9),
    seed=st.integers(0, 10**6),
    clip_norm=st.floats(0.01, 100),
    scale=st.sampled_from([1.0, 0.1, 20.0]),
)
def test_a_batch_is_the_sum_of_its_examples(
    dtype: torch.dtype, count: int, seed: int, clip_norm: float, scale: float
) -> None:
    """Norms from a thousandth of the clip to a thousand clips, in one batch."""
    rng = np.random.default_rng(seed)
    size = clip_norm * 10.0 ** rng.uniform(-3, 3, size=(count, 1))
    values = torch.from_numpy(rng.standard_normal((count, 7)) * size).to(dtype)
    split, scales = [values[:, :3], values[:, 3:]], [scale, 1.0]
    whole = clip_and_sum(split, clip_norm, scales)
    alone = [clip_and_sum([t[i : i + 1] for t in split], clip_norm, scales) for i in range(count)]
    for part in range(2):
        expected = torch.stack([single.sums[part] for single in alone]).sum(0)
        torch.testing.assert_close(whole.sums[part], expected, rtol=1e-5, atol=1e-5 * clip_norm)
    assert whole.clipped == sum(single.clipped for single in alone)
    for single in alone:
        norm = torch.cat([s.double() for s in single.sums]).norm()
        assert float(norm) <= clip_norm * (1 + 1e-6)
        if single.clipped:
            assert float(norm) == pytest.approx(clip_norm, rel=1e-5)
