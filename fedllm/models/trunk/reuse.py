"""Do not compute the frozen trunk again: keep the states that enter the lowest trained layer, example by example.

If nothing below layer k is trained, the states that enter layer k are a function of the example alone. They are
computed at its first use; later passes start at layer k. Gradients are the same bits, where states are kept in the
model's own number format.

Guarantee: what is kept is private, never leaves the process and is gone with it. It makes the time of a step depend on
which examples were drawn before, so it is refused with steps of a fixed shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedllm.data.batches import Batch, Feature
from fedllm.models.trunk.skip import Start, install, pass_of, states_entering
from fedllm.models.trunk.store import Store


class Trunk:
    """The frozen layers below layer k of a model, and the states that were computed with them.

    Args:
        model: the frozen model.
        layer: k; the number of layers: nothing of the model is trained.
        store: where states are kept.
        dtype: number format in which they are kept; None: the model's own.

    Attributes:
        free_rows: compute the rows that are missing alone. Elsewhere kernels are chosen by the number of rows, which is
            fixed: the whole batch is computed.
        computed, reused: examples whose states were computed, and those whose states were there.
    """

    def __init__(
        self, model: nn.Module, layer: int, store: Store, dtype: torch.dtype | None = None
    ) -> None:
        self.model, self.layer, self.store, self.dtype = model, layer, store, dtype
        self.free_rows = next(model.parameters()).device.type == "cpu"
        self.computed = self.reused = 0
        install(model)

    @contextmanager
    def scope(self, batch: Batch, run: Callable[[Batch], Any]) -> Iterator[None]:
        """Within the scope, and in this thread, a pass of the model on ``batch`` starts at layer k.

        Args:
            run: makes a whole pass on a batch, without this scope.
        """
        with pass_of(self.model, Start(self.layer, self.states(batch, run))):
            yield

    def states(self, batch: Batch, run: Callable[[Batch], Any]) -> Tensor:
        """States (B, T, hidden) that enter layer k; those of padding are zero: they reach nothing."""
        keys = _keys(batch)
        found = [self.store.get(key) for key in keys]
        missing = [row for row, states in enumerate(found) if states is None]
        if missing:
            part = _rows_of(batch, missing) if self.free_rows else batch
            fresh = states_entering(self.model, self.layer, lambda: run(part))
            for place, row in enumerate(missing):
                real = batch.attention_mask[row].bool()
                own = fresh[place if self.free_rows else row][real]
                kept = own if self.dtype is None else own.to(self.dtype)
                found[row] = kept
                if row < len(batch):  # a filler is no example
                    self.store.put(keys[row], kept)
        self.computed += len(missing)
        self.reused += len(keys) - len(missing)
        return self._padded(batch, found)

    def estimated_bytes(self, features: Sequence[Feature], hidden: int) -> int:
        """Bytes that the states of all these examples take; ``hidden`` is the size of a token's state."""
        dtype = self.dtype or next(self.model.parameters()).dtype
        tokens = sum(len(feature) for feature in features)
        return tokens * hidden * torch.empty((), dtype=dtype).element_size()

    def _padded(self, batch: Batch, found: Sequence[Tensor | None]) -> Tensor:
        first = next(states for states in found if states is not None)
        rows, tokens = batch.input_ids.shape
        dtype = next(self.model.parameters()).dtype
        device = batch.input_ids.device
        whole = torch.zeros(rows, tokens, first.shape[-1], dtype=dtype, device=device)
        whole[batch.attention_mask.bool()] = torch.cat([s for s in found if s is not None]).to(
            device=device, dtype=dtype
        )
        return whole


def differs(trunk: Trunk, batch: Batch, run: Callable[[Batch], Tensor]) -> float:
    """Largest difference of a pass that starts at layer k to a whole pass, over the largest number of the latter.

    Args:
        batch: public examples.
        run: the output of a pass on a batch.

    Raises:
        Exception: whatever the model raises where its layers are not a plain chain.
    """
    with torch.no_grad():
        whole = run(batch)
        with trunk.scope(batch, run):
            started = run(batch)
    if started.shape != whole.shape:
        return float("inf")
    scale = float(whole.abs().max().clamp(min=1e-30))
    return float((started - whole).abs().max()) / scale


def _keys(batch: Batch) -> list[bytes]:
    """A digest of all that the model is given of each row."""
    inputs = [value.cpu() for _, value in sorted(batch.model_inputs().items())]
    rows = torch.stack(inputs, dim=1).contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def _rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch, as examples."""
    chosen = torch.tensor(list(rows), device=batch.input_ids.device)

    def part(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.index_select(0, chosen)

    return replace(
        batch,
        input_ids=batch.input_ids.index_select(0, chosen),
        attention_mask=batch.attention_mask.index_select(0, chosen),
        position_ids=part(batch.position_ids),
        targets=part(batch.targets),
        target_mask=part(batch.target_mask),
        token_type_ids=part(batch.token_type_ids),
        values=part(batch.values),
        token_targets=part(batch.token_targets),
        fillers=0,
    )
