"""Random streams: reproducible, distinct for every label, with a full-width key."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import generator

labels = st.lists(
    st.one_of(st.text(max_size=4), st.integers(-(2**70), 2**70), st.binary(max_size=4)), max_size=3
)


def first(seed, *names):
    return generator(seed, *names).bytes(32)


@given(st.integers(0, 2**256 - 1), labels, st.integers(0, 2**256 - 1), labels)
def test_streams_differ_unless_seed_and_labels_are_the_same(seed_a, names_a, seed_b, names_b):
    same = seed_a == seed_b and [(type(n), n) for n in names_a] == [(type(n), n) for n in names_b]
    assert (first(seed_a, *names_a) == first(seed_b, *names_b)) is same


@pytest.mark.parametrize(
    ("a", "b"),
    [(("ab", "c"), ("a", "bc")), ((1,), ("1",)), (("1",), (b"1",)), ((), ("",)), ((1, 2), (12,))],
)
def test_labels_are_length_prefixed_and_typed(a, b):
    assert first(7, *a) != first(7, *b)


def test_seeds_that_agree_in_their_low_32_or_64_bits_differ():
    assert first(5) != first(5 + 2**32)
    assert first(5) != first(5 + 2**64)
    assert first(5) != first(5 + 2**255)


def test_no_seed_gives_fresh_noise_at_each_call():
    streams = {first(None, "noise", 1) for _ in range(50)}
    assert len(streams) == 50


def test_key_has_128_bits():
    keys = [generator(seed, "x").bit_generator.state["state"]["key"] for seed in range(200)]
    bits = np.unpackbits(np.array(keys, dtype=np.uint64).view(np.uint8).reshape(200, 16), axis=1)
    assert bits.shape == (200, 128)
    assert np.all((bits.mean(axis=0) > 0.3) & (bits.mean(axis=0) < 0.7))


def test_noise_of_two_clients_and_two_rounds_is_uncorrelated():
    draws = [
        generator(3, "noise", client, rnd).standard_normal(20000)
        for client in ("a", "b")
        for rnd in (0, 1)
    ]
    correlation = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(20000)


@pytest.mark.parametrize("seed", [-1, 2**256, 1.5, "1", True])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        generator(seed)


@pytest.mark.parametrize("label", [1.5, None, True, ("a",)])
def test_label_of_another_type_is_refused(label):
    with pytest.raises(ValueError, match="label"):
        generator(1, label)


def test_poisson_sample_includes_each_record_independently():
    rng = generator(11, "sampling")
    n, rate, rounds = 400, 0.03, 2000
    chosen = np.zeros((rounds, n), dtype=bool)
    for row in chosen:
        row[poisson_sample(n, rate, rng)] = True
    sizes = chosen.sum(axis=1)
    # A binomial size: fixed-size or shuffled batches would have no variance.
    assert abs(sizes.mean() - n * rate) < 5 * np.sqrt(n * rate * (1 - rate) / rounds)
    assert 0.85 < sizes.var() / (n * rate * (1 - rate)) < 1.15
    per_record = chosen.mean(axis=0)
    assert np.abs(per_record - rate).max() < 6 * np.sqrt(rate * (1 - rate) / rounds)
    # Drawn anew each time: a record may be in two successive samples.
    assert (chosen[1:] & chosen[:-1]).sum() > 0


def test_poisson_sample_edges():
    rng = generator(1)
    assert poisson_sample(0, 0.5, rng).tolist() == []
    assert poisson_sample(10, 0.0, rng).tolist() == []
    everything = poisson_sample(10, 1.0, rng)
    assert everything.tolist() == list(range(10))
    assert everything.dtype == np.int64
    assert any(poisson_sample(3, 0.1, rng).size == 0 for _ in range(50))


@pytest.mark.parametrize(("n", "rate"), [(-1, 0.1), (5, -0.1), (5, 1.1), (5, float("nan"))])
def test_poisson_sample_refuses(n, rate):
    with pytest.raises(ValueError, match="Expected"):
        poisson_sample(n, rate, generator(1))


class Fixed:
    """Gives the uniform numbers k * 2^-53 for given k."""

    def __init__(self, ks):
        self.ks = ks

    def random(self, size):
        assert size == len(self.ks)
        return np.array([k * 2.0**-53 for k in self.ks])


@given(st.floats(0, 1) | st.floats(0, 1e-12))
def test_realised_sampling_probability_is_the_largest_multiple_below_the_rate(rate):
    """Of the 2^53 equally likely uniform numbers, `included` many lead to inclusion."""
    included = math.floor(Fraction(rate) * 2**53)
    ks = [k for k in (0, included - 1, included, included + 1, 2**53 - 1) if 0 <= k < 2**53]
    taken = {ks[i] for i in poisson_sample(len(ks), rate, Fixed(ks))}
    assert taken == {k for k in ks if k < included}
    assert Fraction(included, 2**53) <= Fraction(rate)


def test_a_rate_below_the_resolution_includes_nobody():
    """A bare `u < rate` would include the record whose u is 0, with probability 2^-53 > rate."""
    assert poisson_sample(1, 1e-17, Fixed([0])).tolist() == []


def test_poisson_sample_from_the_secret_source():
    rng = generator(None)
    sizes = [poisson_sample(400, 0.25, rng).size for _ in range(2000)]
    assert abs(np.mean(sizes) - 100) < 6 * (75 / 2000) ** 0.5
    assert 0.75 < np.var(sizes) / 75 < 1.3
