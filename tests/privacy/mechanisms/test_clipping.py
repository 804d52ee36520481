"""Clipping is total: no input, however odd, contributes more than the bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privacy.mechanisms.clipping import clip_and_sum, clip_vector

NAN, INF = float("nan"), float("inf")
any32 = st.floats(allow_nan=True, allow_infinity=True, width=32)
any64 = st.floats(allow_nan=True, allow_infinity=True, width=64)
norms = st.floats(1e-6, 1e6)


def total_norm(sums):
    return math.sqrt(sum(float(s.double().square().sum()) for s in sums))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([np.float32, np.float64]).flatmap(
        lambda t: hnp.arrays(
            t,
            st.tuples(st.integers(1, 4), st.integers(1, 5)),
            elements=any32 if t is np.float32 else any64,
        )
    ),
    norms,
    st.sampled_from([None, (1.0, 1.0), (1e-3, 250.0), (1e-20, 1e20)]),
)
def test_each_example_contributes_at_most_the_norm_whatever_it_holds(array, clip_norm, scales):
    tensor = torch.from_numpy(array)
    split = [tensor[:, :1], tensor[:, 1:]]
    nonfinite = int((~np.isfinite(array).all(axis=1)).sum())
    for row in range(len(array)):
        single = clip_and_sum([t[row : row + 1] for t in split], clip_norm, scales)
        assert total_norm(single.sums) <= clip_norm * (1 + 1e-6)
    whole = clip_and_sum(split, clip_norm, scales)
    assert all(bool(torch.isfinite(s).all()) for s in whole.sums)
    assert total_norm(whole.sums) <= clip_norm * len(array) * (1 + 1e-5)
    assert whole.count == len(array)
    assert whole.nonfinite >= nonfinite
    if scales is None:
        assert whole.nonfinite == nonfinite


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(4)), elements=st.floats(-1e3, 1e3)),
    st.floats(0.01, 100),
)
@example(np.array([[5.03125, 0.0, 0.0, 0.0]]), 5.03125)
def test_against_one_example_at_a_time(array, clip_norm):
    expected = np.zeros(4)
    beyond, at_least = 0, 0  # a norm within a rounding of the clip is scaled by a rounding, or not
    for row in array:
        norm = math.sqrt(math.fsum(x * x for x in row))
        beyond += norm > clip_norm * (1 + 1e-6)
        at_least += norm >= clip_norm * (1 - 1e-6)
        expected += row * min(1.0, clip_norm / norm) if norm > 0 else 0.0
    result = clip_and_sum([torch.from_numpy(array)], clip_norm)
    assert result.sums[0].numpy() == pytest.approx(
        expected, rel=1e-5, abs=1e-5 * max(1.0, clip_norm)
    )
    assert beyond <= result.clipped <= at_least


def test_one_norm_over_all_tensors_together():
    a, b = torch.full((1, 2, 2), 3.0), torch.full((1, 7), 4.0)
    result = clip_and_sum([a, b], 1.0)
    norm = math.sqrt(4 * 9 + 7 * 16)
    assert float(result.norms[0]) == pytest.approx(norm)
    assert total_norm(result.sums) == pytest.approx(1.0, rel=1e-6)
    assert result.sums[0].shape == (2, 2)
    assert float(result.sums[0][0, 0]) == pytest.approx(3 / norm, rel=1e-6)


def test_examples_below_the_bound_are_untouched():
    rows = torch.tensor([[0.1, 0.2], [0.3, -0.4]])
    result = clip_and_sum([rows], 1.0)
    assert torch.equal(result.sums[0], rows.sum(dim=0))
    assert result.clipped == 0


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_non_finite_example_becomes_zero_and_is_counted(bad, dtype):
    rows = torch.tensor([[bad, 1.0], [0.3, 0.4], [1.0, bad]], dtype=dtype)
    result = clip_and_sum([rows], 1.0)
    assert torch.allclose(result.sums[0], rows[1].float())
    assert result.nonfinite == 2
    assert result.count == 3
    assert result.sums[0].dtype == torch.float32


def test_non_finite_in_one_tensor_zeroes_the_example_in_all():
    a, b = torch.tensor([[NAN], [1.0]]), torch.tensor([[2.0], [0.0]])
    result = clip_and_sum([a, b], 5.0)
    assert [float(s) for s in result.sums] == [1.0, 0.0]


def test_zero_norm_does_not_divide_by_zero():
    result = clip_and_sum([torch.zeros(3, 4)], 1.0)
    assert torch.equal(result.sums[0], torch.zeros(4))
    assert result.clipped == 0
    assert result.nonfinite == 0
    vector, clipped, nonfinite = clip_vector(torch.zeros(4), 1.0)
    assert torch.equal(vector, torch.zeros(4))
    assert not clipped
    assert not nonfinite


@pytest.mark.parametrize(
    ("value", "dtype"), [(3e38, torch.float32), (1e300, torch.float64), (6e4, torch.float16)]
)
def test_huge_finite_values_are_clipped_and_not_zeroed(value, dtype):
    result = clip_and_sum([torch.full((2, 9), value, dtype=dtype)], 1.0)
    assert result.nonfinite == 0
    assert result.clipped == 2
    assert total_norm(result.sums) == pytest.approx(2.0, rel=1e-5)


def test_empty_batch():
    result = clip_and_sum([torch.zeros(0, 3, 2), torch.zeros(0, 5)], 1.0)
    assert result.count == 0
    assert [tuple(s.shape) for s in result.sums] == [(3, 2), (5,)]
    assert all(not s.any() for s in result.sums)


def test_scales_clip_in_scaled_coordinates():
    a, b = torch.tensor([[3.0]]), torch.tensor([[4.0]])
    result = clip_and_sum([a, b], 1.0, scales=[2.0, 0.5])
    norm = math.hypot(6.0, 2.0)
    assert float(result.norms[0]) == pytest.approx(norm)
    assert float(result.sums[0]) == pytest.approx(6 / norm, rel=1e-6)
    assert float(result.sums[1]) == pytest.approx(2 / norm, rel=1e-6)


def test_adding_a_hostile_example_moves_the_sum_by_at_most_the_norm():
    torch.manual_seed(0)
    rows = torch.randn(50, 30) * 10
    base = clip_and_sum([rows], 0.5).sums[0]
    for hostile in (rows[0] * 1e30, -base * 1e6, torch.full((30,), NAN), torch.full((30,), 3e38)):
        moved = clip_and_sum([torch.cat([rows, hostile[None]])], 0.5).sums[0]
        assert float((moved - base).norm()) <= 0.5 * (1 + 1e-4)


def test_clip_vector():
    clipped, was, bad = clip_vector(torch.tensor([3.0, 4.0]), 1.0)
    assert clipped.tolist() == pytest.approx([0.6, 0.8], rel=1e-6)
    assert (was, bad) == (True, False)
    clipped, was, bad = clip_vector(torch.tensor([[0.3], [NAN]]), 1.0)
    assert (was, bad) == (False, True)
    assert clipped.shape == (2, 1)
    assert not clipped.any()


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, NAN, INF, 1e31])
def test_bad_clip_norm(clip_norm):
    with pytest.raises(ValueError, match="clip_norm"):
        clip_and_sum([torch.zeros(1, 1)], clip_norm)


def test_bad_shapes_and_scales():
    with pytest.raises(ValueError, match="same number of examples"):
        clip_and_sum([torch.zeros(2, 1), torch.zeros(3, 1)], 1.0)
    with pytest.raises(ValueError, match="scales"):
        clip_and_sum([torch.zeros(2, 1)], 1.0, scales=[1.0, 1.0])
    with pytest.raises(ValueError, match="scales"):
        clip_and_sum([torch.zeros(2, 1)], 1.0, scales=[0.0])
    with pytest.raises(ValueError, match="at least one"):
        clip_and_sum([], 1.0)
    with pytest.raises(ValueError, match="floating"):
        clip_and_sum([torch.zeros(2, 1, dtype=torch.int64)], 1.0)
