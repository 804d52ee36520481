"""Prefixes: their shape and initial values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedllm.models import attention
from fedllm.models.backbone import Backbone

PREFIX = "prefix"
"""Name of the trained tensor that holds a prefix."""


@dataclass(frozen=True)
class PrefixSpec:
    """Shape of a prefix: ``length`` key/value pairs in each of ``layers`` (ascending, distinct)."""

    length: int
    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"Expected prefix length >= 1, got length={self.length}")
        if list(self.layers) != sorted(set(self.layers)) or any(i < 0 for i in self.layers):
            raise ValueError(f"Expected distinct ascending layers >= 0, got layers={self.layers}")
        if self.kv_heads < 1 or self.head_dim < 1:
            raise ValueError(
                f"Expected kv_heads >= 1 and head_dim >= 1, "
                f"got kv_heads={self.kv_heads}, head_dim={self.head_dim}"
            )

    @classmethod
    def for_backbone(
        cls, backbone: Backbone, length: int, layers: Sequence[int] | None = None
    ) -> PrefixSpec:
        """The spec for ``backbone``; ``layers`` None means every layer.

        Raises ValueError for layers that the model lacks, or a length beyond its positions.
        """
        chosen = tuple(range(backbone.n_layers)) if layers is None else tuple(sorted(layers))
        if any(not 0 <= i < backbone.n_layers for i in chosen):
            raise ValueError(
                f"Expected layers between 0 and {backbone.n_layers - 1} for {backbone.name}, "
                f"got layers={list(chosen)}"
            )
        limit = backbone.max_positions
        if backbone.kind == "decoder" and limit is not None and length >= limit:
            raise ValueError(
                f"Expected prefix length < {limit} (the positions of {backbone.name}), "
                f"got length={length}"
            )
        return cls(length, chosen, backbone.kv_heads, backbone.head_dim)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(layers with a prefix, 2 for key and value, kv_heads, length, head_dim)."""
        return (len(self.layers), 2, self.kv_heads, self.length, self.head_dim)

    @property
    def n_parameters(self) -> int:
        """Number of trainable coordinates."""
        return int(np.prod(self.shape))


def init_random(spec: PrefixSpec, std: float, rng: np.random.Generator) -> Tensor:
    """Independent normal values, float32, of ``spec.shape``. Raises ValueError for std < 0."""
    if not (std >= 0 and np.isfinite(std)):
        raise ValueError(f"Expected a finite std >= 0, got std={std}")
    return torch.from_numpy((rng.standard_normal(spec.shape) * std).astype(np.float32))


def init_from_phrase(backbone: Backbone, spec: PrefixSpec, phrase: str) -> Tensor:
    """The keys and values that the model computes for a phrase (Li and Liang, 2021, section 7.2).

    The phrase's tokens are repeated or cut to ``spec.length``. A decoder's keys are as they would
    sit in a KV cache at positions 0..P-1, with the tokenizer's start token first where it adds one.
    An encoder reads the tokens between its own special tokens, whose keys are then left out. The
    phrase must not be taken from private data: nothing here protects it.

    Returns:
        float32 of ``spec.shape`` on the CPU.

    Raises:
        ValueError: the phrase has no tokens, or the prefix exceeds the model's positions.
    """
    tokenizer = backbone.tokenizer
    body = list(tokenizer(phrase, add_special_tokens=False)["input_ids"])
    if not body:
        raise ValueError(f"Expected a phrase with at least one token, got phrase={phrase!r}")
    lead: list[int] = []
    tail: list[int] = []
    if backbone.kind == "encoder":
        lead = [i for i in (tokenizer.cls_token_id,) if i is not None]
        tail = [i for i in (tokenizer.sep_token_id,) if i is not None]
        first = len(lead)
    else:
        full = tokenizer(phrase)["input_ids"]
        if tokenizer.bos_token_id is not None and full[:1] == [tokenizer.bos_token_id] != body[:1]:
            lead = [tokenizer.bos_token_id]
        first = 0
    repeated = body * -(-spec.length // len(body))
    ids = lead + repeated[: spec.length + first - len(lead)] + tail
    if backbone.max_positions is not None and len(ids) > backbone.max_positions:
        raise ValueError(
            f"Expected at most {backbone.max_positions} positions for {backbone.name}, "
            f"got prefix length={spec.length}"
        )
    inputs = torch.tensor([ids], device=backbone.device)
    captured = attention.capture_keys_values(
        backbone.model, input_ids=inputs, attention_mask=torch.ones_like(inputs)
    )
    chosen = captured[list(spec.layers), :, :, first : first + spec.length]
    return chosen.cpu().contiguous()
