"""Buckets, and the division into micro-batches: an example's shape is its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedllm.data.shapes import ROW_MULTIPLE, Shapes, micro_batches, shapes_for

SHAPES = st.builds(
    Shapes,
    least=st.sampled_from([4, 8, 16]),
    parts=st.sampled_from([1, 2, 4]),
    tokens=st.sampled_from([None, 512]),
    longest=st.sampled_from([None, 100]),
    shortest=st.sampled_from([0, 16]),
)
LENGTHS = st.lists(st.integers(1, 300), max_size=60)


@given(LENGTHS, st.integers(1, 1000), SHAPES)
def test_micro_batches_cover_once_within_budget(lengths, budget, shapes):
    groups = micro_batches(lengths, budget, shapes)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        bucket = shapes.bucket_length(lengths[group[0]])
        assert {shapes.bucket_length(lengths[i]) for i in group} == {bucket}
        if shapes.tokens is None:
            assert len(group) * bucket <= budget or len(group) == 1
        else:
            assert len(group) <= shapes.rows(bucket)
    assert groups == micro_batches(lengths, budget, shapes)


def test_micro_batches_fill_the_budget():
    assert micro_batches([2, 5, 2, 4], 8) == [[1], [0, 2], [3]]
    assert micro_batches([2, 50, 2], 4) == [[1], [0], [2]]
    assert micro_batches([], 8) == []
    with pytest.raises(ValueError, match="max_tokens >= 1, got max_tokens=0"):
        micro_batches([1], 0)


@given(st.integers(1, 5000), SHAPES)
def test_a_bucket_holds_its_examples(length, shapes):
    bucket = shapes.bucket_length(length)
    assert bucket >= length
    if shapes.longest is None:
        assert bucket % ROW_MULTIPLE == 0
        assert shapes.bucket_length(bucket) == bucket
        assert bucket - length < max(shapes.least, shapes.shortest, length / shapes.parts)
    else:
        assert bucket <= max(length, shapes.longest)


def test_shapes_by_device():
    cpu = shapes_for(torch.device("cpu"))
    assert [cpu.bucket_length(n) for n in (1, 8, 9, 13, 17, 64, 65, 129)] == [
        8,
        8,
        12,
        16,
        24,
        64,
        96,
        192,
    ]
    assert cpu.rows(8) is None
    other = shapes_for(torch.device("cuda"))
    assert [
        (other.bucket_length(n), other.rows(other.bucket_length(n))) for n in (1, 17, 5000)
    ] == [
        (16, 128),
        (32, 64),
        (8192, 1),
    ]
