"""Classification by a linear head on an encoder's pooled, normalised features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.data.labels import label_index
from fedllm.tasks.base import Params, column_values
from fedllm.tasks.classification import Classification
from fedllm.tasks.text_columns import encoded_texts, reads_segments

FEATURE_NORM = 4.0
"""L2 norm of the features that the head reads."""


class HeadClassification(Classification):
    """``logits = W x + b`` with x the pooled hidden states, scaled to norm ``FEATURE_NORM``.

    The normalisation is without parameters and by the example itself alone. The head starts at
    zero, so that the first gradient is the same whatever the seed. Private training gains from both:
    gradient norms of the examples become alike, and clipping cuts them evenly. The norm is small, so
    that the gradient of an example that is learnt falls below the clipping norm; with large features
    every gradient is clipped to one length, and the class scores grow without end.
    """

    padding_side = "right"

    def features(self, records: Sequence[Mapping[str, Any]]) -> list[Feature]:
        columns = [
            [str(value) for value in column_values(records, column, "task.text")]
            for column in self.settings.text
        ]
        targets, _ = label_index(records, self.settings.target, self.labels)
        if not records:
            return []
        backbone = self.backbone
        encoded = encoded_texts(backbone.tokenizer, columns, self.settings.max_length)
        segments = encoded.get("token_type_ids") if reads_segments(backbone.model) else None
        return [
            Feature(
                input_ids=list(ids),
                target=target,
                segments=None if segments is None else list(segments[row]),
            )
            for row, (ids, target) in enumerate(zip(encoded["input_ids"], targets, strict=True))
        ]

    def initial_params(self) -> dict[str, Tensor]:
        hidden, classes = self.backbone.hidden_size, len(self.labels)
        return {"head.weight": torch.zeros(classes, hidden), "head.bias": torch.zeros(classes)}

    def logits(self, params: Params, batch: Batch) -> Tensor:
        """Return class scores, (B, C)."""
        hidden = self.run(batch).last_hidden_state.float()
        if self.settings.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = batch.attention_mask.unsqueeze(-1)
            pooled = hidden.masked_fill(mask == 0, 0.0).sum(1) / mask.sum(1).clamp(min=1)
        pooled = torch.nn.functional.normalize(pooled, dim=-1, eps=1e-6) * FEATURE_NORM
        # not a product of matrices: its kernel, and so the rounding, differs where the batch has one example
        return (params["head.weight"] * pooled.unsqueeze(1)).sum(-1) + params["head.bias"]
