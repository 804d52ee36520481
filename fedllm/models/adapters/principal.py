"""Start LoRA's first factor in the principal directions of each map's inputs on public text.

Rows of A that are the leading eigenvectors of the inputs' second moment see as much of an input as ``rank`` directions
can, and so as much of the gradient of a frozen map, whose rows are combinations of inputs. A function of the model and
of public text alone.

Source: the initialisation of EVA (Paischer et al. 2024, arXiv 2410.07170), with public text in place of private data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fedllm.data.batches import Batch
from fedllm.models.adapters.lora import A, LoraAdapter, factor_name
from fedllm.models.adapters.slot import by_example, changed


class _Moment:
    """A change that changes nothing: it adds up the second moment of a module's inputs."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.total = torch.zeros(size, size, dtype=torch.float64)
        self.batch: Batch | None = None

    def __call__(self, module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
        assert self.batch is not None
        rows, tokens = self.batch.input_ids.shape
        x = by_example(given, (int(rows), int(tokens)), self.name)
        if x.shape[1] == tokens:
            real = self.batch.attention_mask.bool()
            real[len(self.batch) :] = False
            x = x[real]
        else:  # one vector an example (a pooled state)
            x = x[: len(self.batch)].flatten(0, 1)
        x = x.double()
        self.total += (x.T @ x).cpu()
        return output


@torch.no_grad()
def principal_factors(
    adapter: LoraAdapter, batches: Iterable[Batch], run: Callable[[Batch], Any]
) -> dict[str, Tensor]:
    """Return A of each map of the adapter: (rank, in), orthonormal rows, float32 on the CPU.

    Args:
        batches: public text; padding and fillers do not count.
        run: makes a whole pass of the frozen model on a batch.

    Raises:
        ValueError: no text, inputs that are not finite, or inputs that a module does not keep apart by example.
    """
    moments = {t.module: _Moment(t.module, t.inputs) for t in adapter.targets}
    seen = 0
    for batch in batches:
        for moment in moments.values():
            moment.batch = batch
        with changed(adapter.model, moments):
            run(batch)
        seen += len(batch)
    if not seen:
        raise ValueError("Expected public text for adapter.init=principal, got none")
    found = {}
    for target in adapter.targets:
        total = moments[target.module].total
        if not bool(total.isfinite().all()):
            raise ValueError(
                f"Expected finite inputs of {target.module} on the public text, got others"
            )
        found[factor_name(target, A)] = leading_directions(total, adapter.rank)
    return found


def leading_directions(moment: Tensor, rank: int) -> Tensor:
    """Return the eigenvectors (rank, n) of the largest eigenvalues of a symmetric matrix (n, n), float32.

    The entry of each that is largest by absolute value is positive, so that a sign is not left to the library.
    """
    _, vectors = torch.linalg.eigh(moment.double())
    rows = vectors.T.flip(0)[:rank]
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return (rows * largest.sign()).float().contiguous()
