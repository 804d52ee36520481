"""Record the factors of a matrix's gradient in one forward and one backward pass, instead of a copy an example.

The gradient of example i with respect to a matrix W of ``y = W x`` is the sum over its tokens of g_t x_t^T, with g the
gradient of the loss with respect to y. A tape keeps x and g of each use of W, row by row: a matrix of a million numbers
takes a few vectors a token, and no copy an example (book-keeping: Bu et al. 2023, arXiv 2210.00038).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from fedllm.models.adapters.slot import by_example
from fedllm.models.footprint.recompute import computing_again


class Kind(Enum):
    """A module's use of a matrix.

    ``LINEAR``: y = W x, W (out, in). ``BY_INPUT``: y = W^T x, W (in, out), as GPT-2's ``Conv1D``. ``LOOKUP``: y = W[id].
    """

    LINEAR = "linear"
    BY_INPUT = "by-input"
    LOOKUP = "lookup"


@dataclass(eq=False)
class Use:
    """One use of a matrix in a forward pass.

    Attributes:
        kind: how.
        given: (B, N, in) the inputs, or (B, N) the ids that are looked up.
        gradient: (B, N, out) of the summed losses with respect to the outputs; None if no loss depends on them.
    """

    kind: Kind
    given: Tensor
    gradient: Tensor | None = None


class Tape:
    """The uses of some of an adapter's matrices, by the tensors' names, in the order of the forward pass.

    Args:
        names: tensors that are recorded.
        batch: (rows, padded tokens).

    Attributes:
        anchor: is to be among the inputs of ``torch.autograd.grad``, so that the backward pass reaches every use.
    """

    def __init__(self, names: Collection[str], batch: tuple[int, int]) -> None:
        self.names = frozenset(names)
        self.batch = batch
        self.anchor = torch.zeros((), requires_grad=True)
        self.uses: dict[str, list[Use]] = {name: [] for name in sorted(self.names)}

    def watch(self, name: str, kind: Kind, given: Tensor, output: Tensor, module: str) -> Tensor:
        """Return ``output`` (as it is), and keep ``given`` and, in the backward pass, the output's gradient.

        Args:
            given: (B, ..., in), or (B N, in) with the examples' tokens one after another; (B, N) for a lookup. A tensor
                with an attribute ``own_shape`` has rows of these dimensions, and rows behind them that fill a shape.
            output: of the same leading dimensions.
            module: its path, for errors.

        Raises:
            ValueError: values that are not kept apart by example, see :func:`by_example`.
        """
        own: torch.Size | None = getattr(given, "own_shape", None)

        def apart(values: Tensor) -> Tensor:
            if own is not None:
                values = values[: own.numel()].reshape(*own, values.shape[-1])
            return by_example(values, self.batch, module)

        kept = given.detach()
        if kind is Kind.LOOKUP:
            kept = apart(kept.unsqueeze(-1)).squeeze(-1)
        else:
            kept = apart(kept)
        use = Use(kind, kept)
        if (
            not computing_again()
        ):  # of a layer that is computed twice the first use is the one that counts
            self.uses[name].append(use)
        watched: Tensor = _Watch.apply(output, self.anchor, use, apart)  # type: ignore[no-untyped-call]
        return watched


class _Watch(torch.autograd.Function):
    """The identity, which leaves its output's gradient in a :class:`Use`."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, anchor: Tensor, use: Use, apart: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.use, ctx.apart = use, apart
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        ctx.use.gradient = ctx.apart(gradient.detach())
        return gradient, None, None, None
