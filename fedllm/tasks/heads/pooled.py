"""A linear head on an encoder's states: pooled over a text, or of each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch
from fedllm.settings.sections import TaskSettings
from fedllm.tasks.base import Params, Task, column_values
from fedllm.tasks.text_columns import encoded_texts, reads_segments

FEATURE_NORM = 4.0
"""L2 norm of the features that the head reads."""


class PooledHead(Task):
    """``outputs = W x + b`` with x the pooled hidden states, scaled to norm ``FEATURE_NORM``.

    The normalisation is without parameters and by the example itself alone. The head starts at
    zero, so that the first gradient is the same whatever the seed. Private training gains from both:
    gradient norms of the examples become alike, and clipping cuts them evenly. The norm is small, so
    that the gradient of an example that is learnt falls below the clipping norm; with large features
    every gradient is clipped to one length, and the class scores grow without end.
    """

    padding_side = "right"

    def encoded(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return ``input_ids`` and ``segments`` (None where the model has no such input) of each record's texts.

        Raises:
            DataError: a column is missing.
        """
        columns = [
            [str(value) for value in column_values(records, column, "task.text")]
            for column in self.settings.text
        ]
        if not records:
            return []
        backbone = self.backbone
        encoded = encoded_texts(backbone.tokenizer, columns, self.settings.max_length)
        segments = encoded.get("token_type_ids") if reads_segments(backbone.model) else None
        return [
            {
                "input_ids": list(ids),
                "segments": None if segments is None else list(segments[row]),
            }
            for row, ids in enumerate(encoded["input_ids"])
        ]

    def initial_params(self) -> dict[str, Tensor]:
        hidden, outputs = self.backbone.hidden_size, outputs_of(self.settings)
        return {"head.weight": torch.zeros(outputs, hidden), "head.bias": torch.zeros(outputs)}

    def outputs(self, params: Params, batch: Batch) -> Tensor:
        """Return what the head gives, (B, outputs) float32."""
        hidden = self.run(batch).last_hidden_state.float()
        if self.settings.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = batch.attention_mask.unsqueeze(-1)
            pooled = hidden.masked_fill(mask == 0, 0.0).sum(1) / mask.sum(1).clamp(min=1)
        pooled = torch.nn.functional.normalize(pooled, dim=-1, eps=1e-6) * FEATURE_NORM
        # not a product of matrices: its kernel, and so the rounding, differs where the batch has one example
        return (params["head.weight"] * pooled.unsqueeze(1)).sum(-1) + params["head.bias"]


def outputs_of(settings: TaskSettings) -> int:
    """Return the number of a head's outputs: one a label, or one number."""
    return len(settings.labels or ()) if settings.facts.names_labels else 1
