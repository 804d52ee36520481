"""Replace chosen rows of a tensor by zeros, whatever stands in them: selected, not multiplied.

A product with zero keeps NaN, and ``masked_fill`` and ``where`` take several times the time of a copy where the
mask is broadcast. Here the bits of each number are combined with a mask of ones or zeros: a bitwise "and" leaves a
number as it is, or makes it zero. It takes the time of a copy, and that time does not depend on the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers as wide as a floating-point number of so many bytes."""


class Padding:
    """Positions of the padding in one batch.

    Attributes:
        shape: (B, T).
    """

    def __init__(self, attention_mask: Tensor) -> None:
        """Store ``attention_mask`` (B, T), 0 at padding."""
        self.shape = attention_mask.shape
        self._kept = -(attention_mask != 0).to(torch.int64)
        self._by_width: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def cleared(self, states: Sequence[Tensor], tokens: int) -> Sequence[Tensor]:
        """Return the tensors of one dtype (four dimensions, the first B and dimension ``tokens`` T) with zeros at
        padding; the gradient of what stood there is zero too, whatever comes from behind."""
        integers = _INTEGERS[states[0].element_size()]
        place = (integers, states[0].device)
        kept = self._by_width.get(place)
        if kept is None:
            kept = self._by_width[place] = self._kept.to(states[0].device, integers)
        shape = [self.shape[0], 1, 1, 1]
        shape[tokens] = self.shape[1]
        kept = kept.view(shape)
        if torch.is_grad_enabled() and any(x.requires_grad for x in states):
            found: Sequence[Tensor] = _And.apply(kept, *states)  # type: ignore[no-untyped-call]
            return found
        return [(x.view(integers) & kept).view(x.dtype) for x in states]


class _And(torch.autograd.Function):
    """Each ``x`` where the mask's bits are ones, 0 where they are zeros, in both directions."""

    @staticmethod
    def forward(ctx: Any, kept: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(kept)
        ctx.set_materialize_grads(False)
        return tuple((x.view(kept.dtype) & kept).view(x.dtype) for x in states)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        there = [grad for grad in grads if grad is not None]
        if torch.is_grad_enabled():  # a derivative of this one is asked for
            cleared = iter(_And.apply(kept, *there))  # type: ignore[no-untyped-call]
        else:
            cleared = iter([(grad.view(kept.dtype) & kept).view(grad.dtype) for grad in there])
        return None, *(None if grad is None else next(cleared) for grad in grads)
