"""Classification by a linear head on an encoder's pooled, normalised features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.data.labels import label_index
from fedllm.tasks.base import Params
from fedllm.tasks.classification import Classification
from fedllm.tasks.heads.pooled import FEATURE_NORM, PooledHead

__all__ = ["FEATURE_NORM", "HeadClassification"]


class HeadClassification(PooledHead, Classification):
    """One class for each text; see :class:`fedllm.tasks.heads.pooled.PooledHead`."""

    def features(self, records: Sequence[Mapping[str, Any]]) -> list[Feature]:
        encoded = self.encoded(records)
        targets, _ = label_index(records, self.settings.target, self.labels)
        return [
            Feature(**fields, target=target)
            for fields, target in zip(encoded, targets, strict=True)
        ]

    def logits(self, params: Params, batch: Batch) -> Tensor:
        """Return class scores, (B, C)."""
        return self.outputs(params, batch)
