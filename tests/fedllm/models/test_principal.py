"""LoRA's first factor from public text: which directions they are, and what they depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from fedllm.models.adapters.lora import factor_name
from fedllm.models.adapters.principal import leading_directions, principal_factors
from fedllm.training.tunable import Tunable
from simulations.attacks.batch_mates.architectures import random_records, tiny_tunable


def inputs_one_by_one(tunable: Tunable, features: Any) -> dict[str, Tensor]:
    """Inputs (tokens, in) of each target, from ordinary hooks, one example at a time, padding left out."""
    found: dict[str, list[Tensor]] = {target.module: [] for target in tunable.adapter.targets}
    real = torch.zeros(0, dtype=torch.bool)
    model = tunable.backbone.model

    def note(name: str) -> Any:
        return lambda module, args: found[name].append(args[0].reshape(len(real), -1)[real])

    hooks = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in found]
    try:
        for feature in features:
            batch = tunable.task.collate([feature])
            real = batch.attention_mask.flatten().bool()
            tunable.task.run(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(values).double() for name, values in found.items()}


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("bert", "classification"), ("gpt2", "generation"), ("llama", "generation")],
)
def test_rows_span_what_the_inputs_have_most_of(architecture: str, task: str) -> None:
    """No other subspace of this size holds more of the inputs: the share is that of the singular values."""
    _, tunable = tiny_tunable(architecture, torch.float32, task, "ffa-lora")
    features = tunable.task.features(random_records([3, 8, 5, 8, 2, 7], 3))
    batches = [tunable.task.collate(features)]  # of different lengths: padded
    found = principal_factors(tunable.adapter, batches, tunable.task.run)
    longest = max(len(feature.input_ids) for feature in features)
    assert any(len(feature.input_ids) < longest for feature in features)
    inputs = inputs_one_by_one(tunable, features)
    for target in tunable.adapter.targets:
        rows, x = found[factor_name(target, "A")].double(), inputs[target.module]
        rank = rows.shape[0]
        assert torch.allclose(rows @ rows.T, torch.eye(rank, dtype=torch.float64), atol=1e-5)
        best = torch.linalg.svdvals(x)[:rank].square().sum()
        assert float((x @ rows.T).square().sum()) == pytest.approx(float(best), rel=1e-4)


def test_what_stands_at_padding_does_not_count() -> None:
    _, tunable = tiny_tunable("bert", torch.float32, "classification", "lora")
    features = tunable.task.features(random_records([3, 8], 3))
    batch = tunable.task.collate(features)
    other = tunable.task.collate(features)
    other.input_ids[other.attention_mask == 0] = 7
    assert not torch.equal(batch.input_ids, other.input_ids)
    run = tunable.task.run
    first, second = (principal_factors(tunable.adapter, [b], run) for b in (batch, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_text_is_refused() -> None:
    _, tunable = tiny_tunable("bert", torch.float32, "classification", "lora")
    with pytest.raises(ValueError, match=r"public text for adapter\.init=principal"):
        principal_factors(tunable.adapter, [], tunable.task.run)


@given(st.integers(2, 12), st.data())
@hypothesis_settings(max_examples=30, deadline=None)
def test_directions_of_a_known_spectrum(size: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, size))
    seed = data.draw(st.integers(0, 2**16))
    rng = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64))
    moment = q @ torch.diag(torch.arange(size, 0, -1, dtype=torch.float64)) @ q.T
    rows = leading_directions(moment, rank).double()
    assert rows.shape == (rank, size)
    overlap = (rows @ q[:, :rank]).abs()
    assert torch.allclose(overlap, torch.eye(rank, dtype=torch.float64), atol=1e-5)
    assert bool((rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all())
