"""Padding, positions, and the division into micro-batches."""

from __future__ import annotations

import pytest
import torch

from fedllm.data.batches import Feature, collate, position_ids

FEATURES = [Feature([7, 8, 9], target_mask=[0, 1, 1]), Feature([5], target_mask=[1])]


def test_collate_right():
    batch = collate(FEATURES, 1, position_offset=4)
    assert batch.input_ids.tolist() == [[7, 8, 9], [5, 1, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.target_mask.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert batch.position_ids[0].tolist() == [4, 5, 6]
    assert int(batch.position_ids[1, 0]) == 4
    assert batch.last_positions.tolist() == [2, 0]
    assert (len(batch), batch.n_tokens, batch.targets) == (2, 6, None)


def test_collate_left():
    batch = collate(FEATURES, 1, "left", position_offset=4, length=4)
    assert batch.input_ids.tolist() == [[1, 7, 8, 9], [1, 1, 1, 5]]
    assert batch.attention_mask.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    assert batch.target_mask.tolist() == [[0, 0, 1, 1], [0, 0, 0, 1]]
    assert batch.position_ids[0, 1:].tolist() == [4, 5, 6]
    assert int(batch.position_ids[1, 3]) == 4
    assert batch.last_positions.tolist() == [3, 3]


def test_model_inputs_and_device():
    with_target = [Feature([4, 5], target=1), Feature([6], target=0)]
    batch = collate(with_target, 1).to("cpu")
    assert set(batch.model_inputs()) == {"input_ids", "attention_mask"}
    assert batch.targets.tolist() == [1, 0]
    assert batch.target_mask is None
    assert "position_ids" in collate(with_target, 1, position_offset=0).model_inputs()


def test_positions_counted_by_slots_are_pefts():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert position_ids(mask, 3, "slots").tolist() == [[3, 4, 5, 6]] * 2
    assert position_ids(mask, 3)[0, 2:].tolist() == [3, 4]
    with pytest.raises(ValueError, match="'tokens' or 'slots', got counted='words'"):
        position_ids(mask, 3, "words")


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ([], {}, "at least one feature"),
        ([Feature([])], {}, "at least one token in each feature, got none in row 0"),
        ([Feature([4], target=1), Feature([4])], {}, "same kind of target"),
        ([Feature([4], target_mask=[1, 0])], {}, "target_mask of 1 entries in row 0, got 2"),
        ([Feature([4, 5])], {"length": 1}, "length >= 2"),
        ([Feature([4, 5])], {"side": "top"}, "got side='top'"),
    ],
)
def test_collate_errors(features, options, message):
    with pytest.raises(ValueError, match=message):
        collate(features, 1, **options)


def test_fillers_fill_the_rows_and_are_no_examples():
    batch = collate([Feature([7, 8], target=1)], 1, rows=3, length=4)
    assert (len(batch), batch.input_ids.shape) == (1, (3, 4))
    assert batch.attention_mask[1:].all()
    assert batch.targets.tolist() == [1, 0, 0]
    assert batch.to("cpu").fillers == 2
    with pytest.raises(ValueError, match="at most rows=1 features, got 2"):
        collate(FEATURES, 1, rows=1)
