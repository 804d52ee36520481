"""A decoder's generation with a prefix in front."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedllm.models.attention import prefix_scope
from fedllm.models.backbone import Backbone
from fedllm.models.generation import generate
from fedllm.models.prefix import PrefixSpec


def generate_with_prefix(
    backbone: Backbone,
    spec: PrefixSpec,
    prefix: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    **options: Any,
) -> Tensor:
    """Tokens that the model writes with the prefix of shape ``spec.shape`` for all examples."""
    with prefix_scope(backbone.model, prefix.to(backbone.device)[None], spec.layers):
        return generate(backbone, input_ids, attention_mask, offset=spec.length, **options)
