"""Generation by a decoder with an adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import position_ids
from fedllm.models.backbone import Backbone
from fedllm.models.parts.model_inputs import takes_positions


@torch.no_grad()
def generate(
    backbone: Backbone,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    offset: int = 0,
    **options: Any,
) -> Tensor:
    """``model.generate`` of a decoder within an adapter's scope, KV cache included.

    Args:
        input_ids, attention_mask: (B, T), padded on the left.
        offset: positions that a prefix takes in front.
        options: passed on to ``generate`` (max_new_tokens, do_sample, num_beams, ...).

    Returns:
        (B, T + new tokens), or (B * num_return_sequences, ...); of an encoder-decoder (B, 1 + new tokens).

    Raises:
        ValueError: the model is an encoder, or an example is padded on the right.
    """
    if backbone.kind == "encoder":
        raise ValueError(f"Expected a decoder to generate with, got the encoder {backbone.name}")
    if not bool(attention_mask[:, -1].all()):
        raise ValueError("Expected padding on the left for generation, got padding on the right")
    if takes_positions(backbone.model):
        options["position_ids"] = position_ids(attention_mask, offset)
    tokens: Tensor = backbone.model.generate(
        input_ids=input_ids, attention_mask=attention_mask, **options
    )
    return tokens
