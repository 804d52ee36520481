"""A number for each text, by a linear head on an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.data.record_forms import RecordError, number_of
from fedllm.metrics import regression_scores
from fedllm.models.backbone import Backbone
from fedllm.settings.sections import TaskSettings
from fedllm.tasks.base import Params, column_values, expand_params, mean_of, required
from fedllm.tasks.heads.pooled import PooledHead


class Regression(PooledHead):
    """An example's loss is the squared error, with ``task.target_range`` stretched to [-1, 1].

    The range is public, so that nothing about the scale is taken from the data. A target beyond it is trained on as
    its end; metrics are in the target's own unit, against the target as it is. The model begins at the middle.
    """

    def __init__(self, settings: TaskSettings, backbone: Backbone, prefix_length: int) -> None:
        super().__init__(settings, backbone, prefix_length)
        self.low, self.high = settings.target_range or (0.0, 1.0)

    def features(self, records: Sequence[Mapping[str, Any]]) -> list[Feature]:
        values = column_values(records, self.settings.target, "task.target")
        features = []
        for row, (fields, value) in enumerate(zip(self.encoded(records), values, strict=True)):
            try:
                number = number_of(value)
            except ValueError as error:
                raise RecordError(f"column {self.settings.target!r}: {error}", row) from error
            half = (self.high - self.low) / 2
            inside = min(max(number, self.low), self.high)
            features.append(Feature(**fields, values=[(inside - self.low) / half - 1.0, number]))
        return features

    def public_record(self) -> dict[str, Any]:
        return super().public_record() | {self.settings.target: self.low}

    def probe(self, ids: list[int]) -> Feature:
        return Feature(ids, values=[float(len(ids) % 2), self.low])

    def losses(self, params: Params, batch: Batch) -> Tensor:
        wanted = required(batch.values, "values")[:, 0]
        return (self.outputs(params, batch)[:, 0] - wanted).square()

    def scores(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """There are none.

        Raises:
            TypeError: always; settings that need scores are refused.
        """
        raise TypeError(
            "Expected a task with scores of answers, got regression, whose answer is a number"
        )

    def answers(self, params: Params, batch: Batch, features: Sequence[Feature]) -> list[float]:
        """Return a number within ``task.target_range`` for each example."""
        shares = self.outputs(params, batch)[: len(batch), 0].double().clamp(-1, 1)
        return [self.low + (share + 1) / 2 * (self.high - self.low) for share in shares.tolist()]

    def evaluate(self, params: Params, batches: Sequence[Batch]) -> dict[str, float]:
        """Compute loss, and errors and correlations of the numbers."""
        truth: list[float] = []
        predicted: list[float] = []
        loss = 0.0
        for batch in batches:
            rows = expand_params(params, len(batch.input_ids))
            loss += float(self.losses(rows, batch)[: len(batch)].sum())
            predicted += self.answers(rows, batch, [])
            truth += required(batch.values, "values")[: len(batch), 1].double().tolist()
        return {
            "loss": mean_of(loss, len(truth)),
            **regression_scores(predicted, truth),
            "examples": float(len(truth)),
        }
