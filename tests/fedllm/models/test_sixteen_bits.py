"""A backbone in 16 bits with an adapter in 32: what is trained and its gradients are float32, near those of 32 bits."""

from __future__ import annotations

import pytest
import torch

from fedllm.training.gradients import clipped_gradient_sum, per_example_gradients
from fedllm.training.tunable import initial_params, make_tunable
from simulations.attacks.batch_mates.architectures import (
    random_records,
    tiny_backbone,
    tiny_tunable,
)
from tests.support.tiny_tunables import shaken

FORMS = ("prefix", "lora", "ffa-lora", "rolora", "fedsvd", "bitfit", "head")
NEAR = {torch.bfloat16: 0.04, torch.float16: 0.005}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ["bert-wide", "llama-wide"])
def test_an_adapter_in_32_bits_on_a_backbone_in_16(
    architecture: str, form: str, dtype: torch.dtype
) -> None:
    if form == "head" and architecture == "llama-wide":
        pytest.skip("a decoder has no head")
    flat = {}
    for kind in (torch.float32, dtype):
        settings, _ = tiny_tunable(architecture, torch.float32, "classification", form)
        whole = make_tunable(settings, tiny_backbone(architecture, kind))
        for weight in whole.backbone.model.parameters():
            assert weight.dtype == kind
            if architecture == "llama-wide" and weight.dim() == 2:
                weight.data /= 8  # its attention and its answers are far from 0 and 1 then
        start = initial_params(whole, settings)
        assert {value.dtype for value in start.values()} == {torch.float32}
        tunable, params = whole.part(shaken(start, 3, 0.05), 1)
        features = tunable.task.features(random_records([9, 6, 7, 5], 1))
        rows = per_example_gradients(tunable, params, tunable.task.collate(features))
        assert {value.dtype for value in rows.values()} == {torch.float32}
        flat[kind] = torch.cat([rows[name].flatten(1) for name in sorted(rows)], dim=1)
        scales = dict.fromkeys(params, 1.0)
        found = clipped_gradient_sum(
            tunable, params, features, clip_norm=0.5, scales=scales, max_tokens=512
        )
        assert {value.dtype for value in found.sums} == {torch.float32}
        assert found.nonfinite == 0
    off = (flat[dtype] - flat[torch.float32]).norm(dim=1).max() / flat[torch.float32].norm(
        dim=1
    ).max()
    assert 0 < float(off) < NEAR[dtype]
