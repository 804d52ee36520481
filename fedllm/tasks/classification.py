"""Base of classification tasks: losses, answers and metrics from class scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.metrics import accuracy, macro_f1
from fedllm.models.backbone import Backbone
from fedllm.settings.sections import TaskSettings
from fedllm.tasks.base import Params, Task, expand_params, mean_of, required


class Classification(Task):
    """A task with one class for each example.

    Attributes:
        labels: names of the classes, by index.
    """

    def __init__(self, settings: TaskSettings, backbone: Backbone, prefix_length: int) -> None:
        super().__init__(settings, backbone, prefix_length)
        self.labels = list(settings.labels or ())

    @abstractmethod
    def logits(self, params: Params, batch: Batch) -> Tensor:
        """Return the scores of the classes, (B, C) float32; ``params`` and ``batch`` as in :meth:`losses`."""

    def losses(self, params: Params, batch: Batch) -> Tensor:
        return torch.nn.functional.cross_entropy(
            self.logits(params, batch), required(batch.targets, "targets"), reduction="none"
        )

    def scores(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        scores = self.logits(params, batch).unsqueeze(1)
        return scores, torch.ones(scores.shape[:2], device=scores.device)

    def answers(
        self, params: Params, batch: Batch, features: Sequence[Feature]
    ) -> list[dict[str, Any]]:
        """Return ``label``, and ``probabilities`` by label, of each example."""
        found: list[dict[str, Any]] = []
        for row in self.logits(params, batch)[: len(batch)].double().softmax(-1).tolist():
            shares = dict(zip(self.labels, row, strict=True))
            best = self.labels[max(range(len(row)), key=row.__getitem__)]
            found.append({"label": best, "probabilities": shares})
        return found

    def evaluate(self, params: Params, batches: Sequence[Batch]) -> dict[str, float]:
        """Compute loss, accuracy and macro-F1 over batches."""
        truth: list[int] = []
        predicted: list[int] = []
        loss = 0.0
        for batch in batches:
            scores = self.logits(expand_params(params, len(batch.input_ids)), batch)[: len(batch)]
            targets = required(batch.targets, "targets")[: len(batch)]
            loss += float(torch.nn.functional.cross_entropy(scores, targets, reduction="sum"))
            truth += targets.tolist()
            predicted += scores.argmax(-1).tolist()
        return {
            "loss": mean_of(loss, len(truth)),
            "accuracy": accuracy(predicted, truth),
            "macro_f1": macro_f1(predicted, truth, len(self.labels)),
            "examples": float(len(truth)),
        }
