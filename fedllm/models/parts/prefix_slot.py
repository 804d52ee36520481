"""Where a model keeps the active prefix: on itself, not in a global, and in it a stack for each thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedllm.models.parts.attention_layers import COUNTED, LAYER, AttentionCall, AttentionGeometry
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
        """``mask`` (B or 1, 1 or heads, T, S) with P visible columns in front (made once a pass)."""
        if self.mask_source is not mask or self.mask is None:
            visible = True if mask.dtype == torch.bool else 0.0
            self.mask = functional.pad(mask, (self.length, 0), value=visible)
            self.mask_source = mask
        return self.mask

    def causal_mask(self, n: int, device: torch.device) -> Tensor:
        """(1, 1, n, P + n): query t sees the whole prefix and the tokens 0..t."""
        made = self.causal_masks.get((n, device))
        if made is None:
            made = torch.ones(n, self.length + n, dtype=torch.bool, device=device)
            made = made.tril(diagonal=self.length)[None, None]
            self.causal_masks[(n, device)] = made
        return made


class PrefixSlot:
    """What one model carries: a stack of active prefixes, the padding and a recorder for each thread.

    Attributes:
        geometry: as observed; None before.
        causal: whether attention is causal in modules that do not say.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self.geometry: AttentionGeometry | None = None
        self.causal = True

    def layer(self, module: nn.Module) -> int | None:
        """The number of the layer that calls; None before there are numbers."""
        number: int | None = getattr(module, LAYER, None)
        if number == COUNTED:
            number = getattr(self._local, "calls", 0)
            self._local.calls = number + 1
        return number

    def restart(self) -> None:
        """Count this thread's calls from the first layer."""
        self._local.calls = 0

    @property
    def stack(self) -> list[ActivePrefix | None]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[ActivePrefix | None] = self._local.stack
        return stack

    @property
    def recorder(self) -> list[AttentionCall] | None:
        return getattr(self._local, "recorder", None)

    @recorder.setter
    def recorder(self, calls: list[AttentionCall] | None) -> None:
        self._local.recorder = calls

    @property
    def padding(self) -> Padding | None:
        return getattr(self._local, "padding", None)

    @padding.setter
    def padding(self, padding: Padding | None) -> None:
        self._local.padding = padding

    def _copy(self) -> PrefixSlot:
        """A copied or pickled model gets an empty slot of its own."""
        new = PrefixSlot()
        new.geometry, new.causal = self.geometry, self.causal
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> PrefixSlot:
        return self._copy()

    def __getstate__(self) -> dict[str, Any]:
        return {"geometry": self.geometry, "causal": self.causal}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._local = threading.local()
        self.geometry, self.causal = state["geometry"], state["causal"]
