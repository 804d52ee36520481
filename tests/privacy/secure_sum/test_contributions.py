"""Records as integers: what one of them moves a sum by, over any values, norms, factors and counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.mechanisms.clipping import clip_and_sum
from privacy.secure_sum import grid
from privacy.secure_sum.contributions import LARGEST_NORM, clip_and_round, count_weight
from privacy.secure_sum.shares import plan_shares

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


def joined(sums):
    return torch.cat([value.reshape(-1) for value in sums]).numpy()


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    count=st.integers(0, 5),
    shapes=st.sampled_from([[(3,)], [(2, 2), (1,)], [(7,), (0,), (2,)]]),
    clip=st.sampled_from([1e-6, 0.3, 1.0, 1e6]),
    factor=st.sampled_from([1e-6, 0.25, 1.0, 1e6]),
    exponent=st.integers(-32, 0),
)
def test_one_record_moves_the_sum_by_its_own_integers_alone(data, count, shapes, clip, factor, exponent):  # fmt: skip
    """Exactly so, for any float32 values: NaN, infinite, subnormal; and within the sensitivity."""
    size = sum(math.prod(shape) for shape in shapes)
    rows = np.array(
        data.draw(st.lists(st.lists(FLOATS, min_size=size, max_size=size), min_size=count + 1, max_size=count + 1)),
        dtype=np.float32,
    )  # fmt: skip

    def found(chosen):
        cuts = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        parts = np.split(chosen, cuts, axis=1)
        tensors = [torch.from_numpy(p.copy()).reshape(len(chosen), *s) for p, s in zip(parts, shapes, strict=True)]  # fmt: skip
        return joined(clip_and_round(tensors, clip, [factor] * len(shapes), exponent).sums)

    one = found(rows[-1:])
    assert np.array_equal(found(rows), found(rows[:-1]) + one)
    assert np.array_equal(found(rows[::-1]), found(rows))
    length = math.sqrt(sum(int(v) ** 2 for v in one))
    # to nearest: half a step an entry; the grid's bound for two roundings is larger
    assert length <= math.ldexp(LARGEST_NORM, -exponent) + math.sqrt(size) / 2 + 1e-6
    assert length <= grid.nearest_sensitivity(LARGEST_NORM, exponent, size)


def test_the_bound_is_attained():
    """A vector whose every entry is a little more than half a step: it rounds up in all of them."""
    d, exponent = 1000, -4
    record = torch.full((1, d), 1 / math.sqrt(d))  # of norm 1, entries of 0.506 steps
    found = joined(clip_and_round([record], 1.0, [1.0], exponent).sums)
    assert np.linalg.norm(found) > 0.99 * (2.0**-exponent + math.sqrt(d) / 2)


@pytest.mark.parametrize("clip", [0.01, 1.0, 30.0])
def test_the_sum_is_that_of_float_clipping(clip):
    torch.manual_seed(0)
    rows = [torch.randn(9, 20, 3), torch.randn(9, 11)]
    rows[0][3] *= 1e20
    rows[1][5, 2] = torch.nan
    scales = [0.5, 1.0]
    other = clip_and_sum(rows, clip, scales)
    found = clip_and_round(rows, clip, scales, -25)
    assert (found.count, found.clipped, found.nonfinite) == (other.count, other.clipped, other.nonfinite)  # fmt: skip
    assert found.below == int((other.norms <= clip).sum())
    for mine, theirs in zip(found.sums, other.sums, strict=True):
        real = mine.double() * 2.0**-25 * clip
        assert torch.allclose(real, theirs.double(), atol=2e-6 * clip, rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(share=st.floats(1e-4, 0.9), d=st.integers(1, 5000), z=st.floats(0.05, 50))
def test_vector_and_count_are_one_vector_within_the_sensitivity(share, d, z):
    """The worst record: norm C, all entries rounded up, and the count's weight; it is at most what the share is made for."""
    h = count_weight(share)
    plan = plan_shares(z, LARGEST_NORM * math.sqrt(1 + h * h), d + 1, 3)
    steps = math.floor(math.ldexp(h, -plan.exponent))
    vector = math.ldexp(LARGEST_NORM, -plan.exponent) + math.sqrt(d) / 2
    assert math.hypot(vector, steps) <= plan.sensitivity
    # and the count has the share p of the cost: 1 / z^2 = 1 / z_sum^2 + 1 / z_count^2
    assert (h / math.sqrt(1 + h * h)) ** 2 == pytest.approx(share)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"clip": 1e-7}, "clipping norm"), ({"clip": math.inf}, "clipping norm"), ({"factors": [0.0]}, "factors"),
        ({"exponent": -33}, "exponent"), ({"exponent": 1}, "exponent"), ({"factors": [1.0, 1.0]}, "a factor for each"),
        ({"records": [torch.zeros(2, 3, dtype=torch.float64)]}, "float32"), ({"records": [torch.zeros(2, 3, dtype=torch.int64)]}, "float32"),
        ({"records": []}, "a factor for each"), ({"records": [torch.zeros(2, 0)]}, "numbers a record"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(wrong, named):
    good = {"records": [torch.zeros(2, 3)], "clip": 1.0, "factors": [1.0], "exponent": -4}
    with pytest.raises(ValueError, match="Expected") as error:
        clip_and_round(**(good | wrong))
    assert named in str(error.value)
    with pytest.raises(ValueError, match="0 < share < 1"):
        count_weight(0.0)
