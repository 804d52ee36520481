"""Rounding stays within its sensitivity, and sums modulo 2^bits decode exactly."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from privacy.secure_sum import grid, ring

FLOATS = st.floats(-1e4, 1e4, width=32)


def norm_of(integers):
    """Return the exact L2 norm, squared."""
    return sum(int(i) ** 2 for i in integers)


@st.composite
def neighbours(draw):
    dimension = draw(st.integers(1, 12))
    vector = hnp.arrays(np.float64, dimension, elements=st.floats(-1e4, 1e4))
    return draw(vector), draw(vector | hnp.arrays(np.float64, dimension, elements=st.floats(-1, 1)))


@given(neighbours(), st.integers(-12, 8))
def test_nearest_moves_by_no_more_than_its_sensitivity(pair, exponent):
    one, other = pair[0], pair[0] + pair[1]
    norm = math.sqrt(sum(Fraction(a) ** 2 for a in (other - one).tolist())) * (1 + 1e-12) + 1e-9
    moved = grid.nearest(other, exponent) - grid.nearest(one, exponent)
    assert norm_of(moved) <= grid.nearest_sensitivity(norm, exponent, one.size) ** 2


def test_the_sensitivity_of_nearest_is_attained():
    """Every entry crosses a boundary: the rounding is not sqrt(d) / 2, and cannot be left out."""
    d = 100
    one = np.full(d, 0.5 - 1e-9)
    moved = grid.nearest(one + 3 + 2e-9, 0) - grid.nearest(one, 0)
    assert (moved == 4).all()
    norm = (3 + 2e-9) * math.sqrt(d)
    assert norm_of(moved) == pytest.approx(grid.nearest_sensitivity(norm, 0, d) ** 2, rel=1e-8)


@given(hnp.arrays(np.float32, st.integers(1, 20), elements=FLOATS), st.integers(-12, 8))
def test_toward_zero_never_grows(values, exponent):
    steps = grid.toward_zero(values, exponent)
    exact = sum(Fraction(float(v)) ** 2 for v in values) / Fraction(2) ** (2 * exponent)
    assert norm_of(steps) <= exact
    if exact >= 1:
        norm = math.sqrt(exact) * 2.0**exponent * (1 + 1e-15)
        assert norm_of(steps) <= grid.toward_zero_sensitivity(norm, exponent) ** 2
    each = [
        abs(Fraction(float(v)) / Fraction(2) ** exponent - int(s))
        for v, s in zip(values, steps, strict=True)
    ]
    assert max(each) < 1


@given(hnp.arrays(np.float64, st.integers(1, 20), elements=FLOATS), st.integers(-12, 8))
def test_nearest_is_within_half_a_step_of_the_very_value(values, exponent):
    steps = grid.nearest(values, exponent)
    for v, s in zip(values, steps, strict=True):
        assert (
            abs(Fraction(float(v)) - int(s) * Fraction(2) ** exponent)
            <= Fraction(2) ** exponent / 2
        )
    assert np.abs(grid.to_real(steps, exponent) - values).max() <= 2.0**exponent / 2


def test_rounding_is_total():
    odd = np.array([np.nan, np.inf, -np.inf, 1e300, 5e-324])
    big = grid.LARGEST_ENTRY
    for rounded in (grid.nearest, grid.toward_zero):
        assert rounded(odd, -20).tolist() == [0, big, -big, big, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: grid.nearest(np.arange(3), 0),
        lambda: grid.nearest(np.zeros(3, np.longdouble), 0),
        lambda: grid.nearest(np.zeros(3), 101),
        lambda: grid.nearest_sensitivity(1.0, 0, 0),
        lambda: grid.nearest_sensitivity(math.nan, 0, 1),
        lambda: grid.toward_zero_sensitivity(0.0, 0),
        lambda: grid.toward_zero_sensitivity(1e300, -200),
        lambda: ring.largest_entry(16, 2, 4.0, 1),
        lambda: ring.largest_entry(32, 2, 2.0**27, 1),
        lambda: ring.largest_entry(32, 2, 4.0, 1, 0.5),
        lambda: ring.encode(np.zeros(2, np.int64), np.zeros(3, np.int64), 5, 32),
        lambda: ring.encode(np.zeros(2, np.int32), np.zeros(2, np.int64), 5, 32),
        lambda: ring.add([]),
        lambda: ring.add([np.zeros(2, np.uint32), np.zeros(2, np.uint64)]),
        lambda: ring.decode(np.zeros(2, np.uint64), 32),
    ],
)
def test_bad_input_is_one_clear_error(wrong):
    with pytest.raises(ValueError, match="Expected"):
        wrong()


@given(
    st.sampled_from([32, 64]), st.integers(1, 9), st.floats(4, 2**15), st.integers(1, 20), st.data()
)
def test_sums_decode_exactly_up_to_the_largest_entries(bits, silos, sigma, dimension, data):
    largest = ring.largest_entry(bits, silos, sigma, dimension)
    room = (2 ** (bits - 1) - 1 - silos * largest) // silos  # of noise, for each silo
    entries = st.sampled_from([-largest, largest, 0, 1]) | st.integers(-largest, largest)
    noises = st.sampled_from([-room, room]) | st.integers(-room, room)
    true, parts = np.zeros(dimension, dtype=object), []
    for _ in range(silos):
        x = data.draw(hnp.arrays(np.int64, dimension, elements=entries))
        noise = data.draw(hnp.arrays(np.int64, dimension, elements=noises))
        parts.append(ring.encode(x, noise, largest, bits))
        true += x.astype(object) + noise.astype(object)
    total = ring.add(parts)
    assert total.dtype == parts[0].dtype
    assert ring.decode(total, bits).tolist() == true.tolist()


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("silos", "sigma", "dimension"), [(1, 4.0, 1), (8, 2.0**15, 10**5), (100, 2.0**13, 10**7)]
)
def test_noise_beyond_the_room_left_for_it_is_improbable_enough(bits, silos, sigma, dimension):
    largest = ring.largest_entry(bits, silos, sigma, dimension)
    room = 2 ** (bits - 1) - 1 - silos * largest
    log_tail = math.log(2 * dimension) + stats.norm.logsf(room / (sigma * math.sqrt(silos)))
    assert log_tail <= math.log(ring.WRAP_PROBABILITY)
    # and at 32 bits no room is wasted: half of it would not do
    if bits == 32:
        assert (
            2 * dimension * stats.norm.sf(room / 2 / (sigma * math.sqrt(silos)))
            > ring.WRAP_PROBABILITY
        )


def test_a_wrapped_sum_is_the_true_one_modulo_the_ring():
    """So privacy needs no room: what is released is a function of the true sum."""
    x = np.array([2**31 - 5, -(2**31) + 3], dtype=np.int64)
    parts = [
        ring.encode(x, np.array([9, -9]), 2**40, 32),
        ring.encode(x, np.array([0, 0]), 2**40, 32),
    ]
    true = 2 * x.astype(object) + np.array([9, -9])
    wrapped = [(int(v) + 2**31) % 2**32 - 2**31 for v in true]
    assert ring.decode(ring.add(parts), 32).tolist() == wrapped


@given(
    hnp.arrays(np.int64, 6, elements=st.integers(-(2**52), 2**52)),
    hnp.arrays(np.int64, 6, elements=st.integers(-50, 50)),
    st.integers(1, 2**52),
)
def test_cutting_entries_moves_neighbours_no_further_apart(one, change, largest):
    zero = np.zeros(6, dtype=np.int64)
    cut = [ring.decode(ring.encode(x, zero, largest, 64), 64) for x in (one, one + change)]
    assert all(np.abs(c).max() <= largest for c in cut)
    assert norm_of(cut[1] - cut[0]) <= norm_of(change)
