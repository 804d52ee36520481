"""Slot for a model's active prefix: stored on the model, with one stack per thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedllm.models.parts.attention_layers import AttentionCall, AttentionGeometry
from fedllm.models.parts.selection import Padding


@dataclass
class ActivePrefix:
    """Prefix keys and values by layer, each (B, kv_heads, P, head_dim), and the last mask made."""

    layers: dict[int, tuple[Tensor, Tensor]]
    batch: int
    length: int
    mask_source: Tensor | None = None
    mask: Tensor | None = None
    causal_masks: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    def widen(self, mask: Tensor) -> Tensor:
        """Return ``mask`` (B or 1, 1 or heads, T, S) with P visible columns in front (made once a pass)."""
        if self.mask_source is not mask or self.mask is None:
            visible = True if mask.dtype == torch.bool else 0.0
            self.mask = functional.pad(mask, (self.length, 0), value=visible)
            self.mask_source = mask
        return self.mask

    def causal_mask(self, n: int, device: torch.device) -> Tensor:
        """Return (1, 1, n, P + n): query t sees the whole prefix and the tokens 0..t."""
        made = self.causal_masks.get((n, device))
        if made is None:
            made = torch.ones(n, self.length + n, dtype=torch.bool, device=device)
            made = made.tril(diagonal=self.length)[None, None]
            self.causal_masks[(n, device)] = made
        return made


class _Here(threading.local):
    """State of each thread: its active prefixes, its padding, its recorder, and its calls since the first layer."""

    def __init__(self) -> None:
        self.stack: list[ActivePrefix | None] = []
        self.padding: Padding | None = None
        self.recorder: list[AttentionCall] | None = None
        self.calls = 0


class PrefixSlot:
    """State of one model: a stack of active prefixes, the padding and a recorder for each thread.

    Attributes:
        here: what each thread has of its own.
        geometry: as observed; None before.
        causal: whether attention is causal in modules that do not say.
    """

    def __init__(self) -> None:
        self.here = _Here()
        self.geometry: AttentionGeometry | None = None
        self.causal = True

    def _copy(self) -> PrefixSlot:
        """Return an empty slot for a copied or pickled model."""
        new = PrefixSlot()
        new.geometry, new.causal = self.geometry, self.causal
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> PrefixSlot:
        return self._copy()

    def __getstate__(self) -> dict[str, Any]:
        return {"geometry": self.geometry, "causal": self.causal}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.here = _Here()
        self.geometry, self.causal = state["geometry"], state["causal"]
