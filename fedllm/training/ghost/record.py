"""One forward and one backward pass of a micro-batch: the factors of large tensors' gradients, copies of small ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedllm.data.batches import Batch
from fedllm.models.adapters.tape import Tape
from fedllm.tasks.base import expand_params
from fedllm.training.ghost.factors import Factors
from fedllm.training.tunable import Tunable


@dataclass(frozen=True)
class Recorded:
    """The gradients of the examples of one micro-batch.

    Attributes:
        rows: tensors (B, ...), by name.
        factors: those of matrices, by name.
    """

    rows: dict[str, Tensor]
    factors: dict[str, Factors]

    def gradients(self) -> dict[str, Tensor]:
        """One gradient an example of every tensor, (B, ...)."""
        return self.rows | {name: factors.gradients() for name, factors in self.factors.items()}


def record(
    tunable: Tunable, params: Mapping[str, Tensor], batch: Batch, names: Collection[str]
) -> Recorded:
    """Return the gradient of each example's own loss: one backward pass of the summed losses.

    Guarantee: row i of all that is returned depends on example i and ``params`` alone.

    Args:
        params: the point at which to differentiate, without a batch dimension.
        names: matrices whose factors are recorded; the others take a copy an example.
    """
    rows, tokens = batch.input_ids.shape
    tape = Tape(names, (int(rows), int(tokens)))
    small = {name: value for name, value in params.items() if name not in tape.names}
    leaves = {
        name: value.detach().contiguous().requires_grad_(True)
        for name, value in expand_params(small, len(batch)).items()
    }
    shared = {name: params[name].detach() for name in tape.names}
    losses = tunable.losses(leaves | shared, batch, tape)
    found = torch.autograd.grad(
        losses.sum(),
        [tape.anchor, *leaves.values()],
        allow_unused=True,
    )
    own = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found[1:], strict=True)
    }
    factors = {
        name: Factors.of(tape.uses.pop(name), params[name].shape, len(batch), losses.device)
        for name in sorted(tape.names)
    }
    return Recorded(own, factors)
