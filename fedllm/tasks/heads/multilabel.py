"""Any number of labels for each text: one decision a label, by a linear head on an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.data.record_forms import RecordError, labels_of
from fedllm.metrics import multilabel_scores
from fedllm.tasks.base import Params, column_values, expand_params, mean_of, required
from fedllm.tasks.heads.pooled import PooledHead


class MultiLabel(PooledHead):
    """An example's loss is the mean over all labels of the binary cross-entropy of each.

    The target is a list of labels, or one text of them with ``task.separator`` between.
    """

    def features(self, records: Sequence[Mapping[str, Any]]) -> list[Feature]:
        labels, separator = self.settings.labels or (), self.settings.separator
        values = column_values(records, self.settings.target, "task.target")
        features = []
        for row, (fields, value) in enumerate(zip(self.encoded(records), values, strict=True)):
            try:
                places = labels_of(value, labels, separator)
            except ValueError as error:
                raise RecordError(f"column {self.settings.target!r}: {error}", row) from error
            given = [float(place in places) for place in range(len(labels))]
            features.append(Feature(**fields, values=given))
        return features

    def public_record(self) -> dict[str, Any]:
        return super().public_record() | {self.settings.target: []}

    def probe(self, ids: list[int]) -> Feature:
        labels = len(self.settings.labels or ())
        return Feature(ids, values=[float((len(ids) + place) % 2) for place in range(labels)])

    def losses(self, params: Params, batch: Batch) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(
            self.outputs(params, batch), required(batch.values, "values"), reduction="none"
        ).mean(-1)

    def scores(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return one prediction a label, of two answers (no, yes), all of one weight."""
        outputs = self.outputs(params, batch)
        scores = torch.stack([torch.zeros_like(outputs), outputs], dim=-1)
        return scores, torch.full_like(outputs, 1 / outputs.shape[1])

    def answers(
        self, params: Params, batch: Batch, features: Sequence[Feature]
    ) -> list[dict[str, Any]]:
        """Return ``labels`` (those of at least ``task.threshold``), and ``probabilities`` by label, of each example."""
        found = []
        for row in self._probabilities(params, batch).tolist():
            shares = dict(zip(self.settings.labels or (), row, strict=True))
            chosen = [label for label, share in shares.items() if share >= self.settings.threshold]
            found.append({"labels": chosen, "probabilities": shares})
        return found

    def _probabilities(self, params: Params, batch: Batch) -> Tensor:
        return self.outputs(params, batch)[: len(batch)].double().sigmoid()

    def evaluate(self, params: Params, batches: Sequence[Batch]) -> dict[str, float]:
        """Compute loss, the share of examples with exactly the right labels (``accuracy``), micro-F1 and macro-F1."""
        truth: list[list[bool]] = []
        predicted: list[list[bool]] = []
        loss = 0.0
        for batch in batches:
            rows = expand_params(params, len(batch.input_ids))
            loss += float(self.losses(rows, batch)[: len(batch)].sum())
            chosen = self._probabilities(rows, batch) >= self.settings.threshold
            predicted += chosen.tolist()
            truth += (required(batch.values, "values")[: len(batch)] > 0.5).tolist()
        return {
            "loss": mean_of(loss, len(truth)),
            **multilabel_scores(predicted, truth),
            "examples": float(len(truth)),
        }
