"""What every task offers, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fedllm.data.records import DataError
from fedllm.inputs import Batch, Feature, collate, micro_batches
from fedllm.models import Backbone
from fedllm.settings import TaskSettings

Params = Mapping[str, Tensor]
"""Trainable tensors by name, or the same with a leading batch dimension ("per example")."""


class Task(ABC):
    """Turns records into features, features into one loss an example, and measures quality.

    Every loss depends on its own example alone: padding, batch mates and micro-batching change
    nothing but rounding. That is what per-example clipping stands on.
    """

    padding_side: Literal["left", "right"] = "right"

    def __init__(self, settings: TaskSettings, backbone: Backbone, prefix_length: int) -> None:
        self.settings = settings
        self.backbone = backbone
        self.prefix_length = prefix_length

    @abstractmethod
    def features(self, records: Sequence[Mapping[str, Any]]) -> list[Feature]:
        """Tokenised examples, cut to ``task.max_length`` tokens.

        Raises:
            DataError: a column is missing or a label unknown; row and column are named.
        """

    @abstractmethod
    def initial_params(self) -> dict[str, Tensor]:
        """Trainable tensors of the task itself (a head), float32; empty where it has none."""

    @abstractmethod
    def losses(self, params: Params, batch: Batch) -> Tensor:
        """Loss of each example, shape (B,), float32.

        Args:
            params: the task's own tensors with a leading batch dimension, each shape (B, ...).
            batch: inputs on the backbone's device; the prefix is in place already.
        """

    @abstractmethod
    def scores(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """The model's answers, as unnormalised log-probabilities, and their weights.

        Args:
            params: as in :meth:`losses`; the prefix is in place already.

        Returns:
            (B, N, C) float32: scores of C answers for each of N predictions of an example (classes for
            one prediction, or the vocabulary for each target token); and (B, N): the weight of each
            prediction in its example's loss, 0 where there is none, with sum 1 for each example.
        """

    @abstractmethod
    def evaluate(self, params: Params, batches: Sequence[Batch]) -> dict[str, float]:
        """Metrics over all batches; ``params`` without batch dimension, the prefix in place."""

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Padded tensors on the backbone's device; decoders count positions from the prefix."""
        return collate(
            features,
            self.backbone.tokenizer.pad_token_id,
            self.padding_side,
            position_offset=self.prefix_length if self.backbone.kind == "decoder" else None,
        ).to(self.backbone.device)

    def batches(self, features: Sequence[Feature], max_tokens: int) -> list[list[int]]:
        """Indices of micro-batches of similar length, at most ``max_tokens`` padded tokens each."""
        # Measured on CPUs; on a GPU a guess that keeps batches wide, not yet measured.
        overhead = 64 if self.backbone.device.type == "cpu" else 4096
        return micro_batches([len(feature) for feature in features], max_tokens, overhead)


def expand_params(params: Params, size: int) -> dict[str, Tensor]:
    """Give each tensor a leading batch dimension of ``size`` without copying."""
    return {name: value.unsqueeze(0).expand(size, *value.shape) for name, value in params.items()}


def column_values(records: Sequence[Mapping[str, Any]], column: str, setting: str) -> list[Any]:
    """Values of one column.

    Raises:
        DataError: a record lacks the column; the setting that names it is in the message.
    """
    values = []
    for row, record in enumerate(records):
        if column not in record:
            raise DataError(
                f"Expected the column {setting}={column!r} in every record, record {row} has only "
                f"{sorted(record)}"
            )
        values.append(record[column])
    return values


def required(tensor: Tensor | None, name: str) -> Tensor:
    """A batch's tensor that this task cannot do without.

    Raises:
        ValueError: the batch has none.
    """
    if tensor is None:
        raise ValueError(f"Expected a batch with {name}, got none")
    return tensor


def mean_of(total: Tensor | float, count: int) -> float:
    """Plain mean with a clear failure for no examples."""
    if count == 0:
        raise ValueError("Expected at least one example to evaluate on, got 0")
    return float(torch.as_tensor(total)) / count
