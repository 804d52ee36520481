"""Interface of all tasks, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature, collate
from fedllm.data.formats.records import DataError
from fedllm.data.shapes import Shapes, bucket_length, micro_batches, shapes_for
from fedllm.models.attention import padding_scope
from fedllm.models.backbone import Backbone
from fedllm.models.footprint.recompute import recomputed
from fedllm.models.parts.model_inputs import takes_positions
from fedllm.models.rotary import reset_rotary, rotary_limit
from fedllm.models.trunk.reuse import Trunk
from fedllm.settings.sections import TaskSettings

Params = Mapping[str, Tensor]
"""Trainable tensors by name, or the same with a leading batch dimension ("per example")."""
PUBLIC_WORD = "the"


class Task(ABC):
    """Turns records into features, features into one loss an example, and measures quality.

    Every loss depends on its own example alone, its padding included (:mod:`fedllm.data.shapes`). That is what
    per-example clipping stands on.
    """

    padding_side: Literal["left", "right"] = "right"

    def __init__(self, settings: TaskSettings, backbone: Backbone, prefix_length: int) -> None:
        self.settings = settings
        self.backbone = backbone
        self.prefix_length = prefix_length
        self.fixed: Shapes | None = None
        """One shape for all micro-batches (:mod:`fedllm.training.batch.fixed_shape`); None: buckets of the device."""
        self.trunk: Trunk | None = None
        """The states of examples that are kept below the lowest trained layer; None computes them each time."""
        self.rows_limit: int | None = None
        """Most rows of a micro-batch, so that copies of trained tensors fit; None: no bound."""
        self.checkpointing = False
        """True: a pass with gradients keeps the layers' inputs alone (:mod:`fedllm.models.footprint.recompute`)."""

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

        With fillers in the batch, here and in the other methods, ``params`` and results have rows for them.
        """

    @abstractmethod
    def scores(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """The model's answers, as unnormalised log-probabilities, and their weights.

        Args:
            params: as in :meth:`losses`; the prefix is in place already.

        Returns:
            (B, N, C) float32: scores of C answers for each of N predictions of an example (classes for
            one prediction, or the vocabulary for each target token); and (B, N): the weight of each
            prediction in its example's loss, 0 if there is none, with sum 1 for each example.
        """

    def answers(self, params: Params, batch: Batch, features: Sequence[Feature]) -> Sequence[Any]:
        """The model's answers as plain values, one for each feature of the batch, for ``fedllm predict``.

        Args:
            params: as in :meth:`losses`; the adapter is in place already.

        Raises:
            TypeError: the task has none (one that writes is asked for texts instead).
        """
        raise TypeError(f"Expected a task with answers to predict, got {type(self).__name__}")

    def public_record(self) -> dict[str, Any]:
        """A record that is a function of the settings alone: one word, of the first class."""
        record = dict.fromkeys(self.settings.text, PUBLIC_WORD)
        return record | {self.settings.target: (self.settings.classes or (PUBLIC_WORD,))[0]}

    def probe(self, ids: list[int]) -> Feature:
        """A feature of these tokens, at least two, with a public target."""
        classes = self.settings.classes
        if not classes:
            return Feature(ids, target_mask=[0] + [1] * (len(ids) - 1))
        return Feature(ids, target=len(ids) % len(classes))

    @abstractmethod
    def evaluate(self, params: Params, batches: Sequence[Batch]) -> dict[str, float]:
        """Metrics over all batches; ``params`` without batch dimension, the prefix in place."""

    def run(self, batch: Batch, **options: Any) -> Any:
        """The backbone's output for a batch; states at padding enter nothing but padding."""
        model = self.backbone.model
        reset_rotary(model)
        kept = nullcontext() if self.trunk is None else self.trunk.scope(batch, self._whole)
        again = recomputed(model) if self.checkpointing else nullcontext()
        with padding_scope(model, batch.attention_mask), kept, again:
            return model(**batch.model_inputs(), **options)

    def _whole(self, batch: Batch) -> Any:
        """The backbone's output for a batch, from the first layer on."""
        with padding_scope(self.backbone.model, batch.attention_mask):
            return self.backbone.model(**batch.model_inputs())

    @cached_property
    def shapes(self) -> Shapes:
        """Return the padding and grouping of examples."""
        backbone = self.backbone
        if self.fixed is not None:
            return self.fixed
        found = shapes_for(backbone.device, self.longest_input, backbone.grouping)
        return replace(found, limit=self.rows_limit)

    @property
    def longest_input(self) -> int | None:
        """Tokens of an example that fit the model in addition to the prefix: its positions, its sliding window, and
        what its rotary tables allow without change; None for no bound."""
        backbone = self.backbone
        limits = [backbone.max_positions]
        if backbone.kind == "decoder":
            config = backbone.model.config.get_text_config()
            limits += [getattr(config, "sliding_window", None), rotary_limit(backbone.model)]
        known = [limit for limit in limits if limit is not None]
        if not known:
            return None
        return min(known) - (self.prefix_length if backbone.kind == "decoder" else 0)

    @property
    def longest(self) -> int | None:
        """Public bound on the tokens of any feature, from the settings alone; None if no model is here."""
        return self.settings.max_length

    @property
    def vocabulary(self) -> int | None:
        """Number of token embeddings; None if no model is here."""
        return int(self.backbone.model.get_input_embeddings().weight.shape[0])

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Padded tensors on the backbone's device; decoders count positions from the prefix.

        The examples of one micro-batch are of one bucket, whose length they are padded to (examples of
        several buckets are padded to the longest of these).

        Raises:
            ValueError: examples that may not share a micro-batch of this model (:mod:`fedllm.models.grouping`).
        """
        shapes = self.shapes
        if shapes.exact:
            _require_one_group(shapes, features)
        longest = max((len(feature.input_ids) for feature in features), default=0)
        length = bucket_length(shapes, longest) if features else 0  # of no shorter one a longer
        counted = self.backbone.kind == "decoder" and takes_positions(self.backbone.model)
        batch = collate(
            features,
            self.backbone.tokenizer.pad_token_id,
            self.padding_side,
            position_offset=self.prefix_length if counted else None,
            length=length,
            rows=shapes.rows(length, len(features)) if features else None,
        )
        device = self.backbone.device
        return batch if device.type == "cpu" else batch.to(device)

    def batches(self, features: Sequence[Feature], max_tokens: int) -> list[list[int]]:
        """Indices of micro-batches of one bucket, at most ``max_tokens`` padded tokens each."""
        lengths = [len(feature.input_ids) for feature in features]
        return micro_batches(lengths, max_tokens, self.shapes)


def _require_one_group(shapes: Shapes, features: Sequence[Feature]) -> None:
    """Refuse examples of several lengths, or several examples, in one micro-batch of a model that mixes them.

    Raises:
        ValueError: they are.
    """
    lengths = sorted({len(feature.input_ids) for feature in features})
    if len(lengths) > 1 or (shapes.alone and len(features) > 1):
        wanted = "one example" if shapes.alone else "examples of one length"
        raise ValueError(
            f"Expected {wanted} in a micro-batch of this model, which would mix them, got {len(features)} of "
            f"lengths {lengths}"
        )


def expand_params(params: Params, size: int) -> dict[str, Tensor]:
    """Give each tensor a leading batch dimension of ``size`` without copying."""
    return {name: value.unsqueeze(0).expand(size, *value.shape) for name, value in params.items()}


def with_fillers(params: Params, batch: Batch) -> dict[str, Tensor]:
    """Per-example tensors with rows for the batch's fillers: copies of the first, which nothing depends on."""
    if not batch.fillers:
        return dict(params)
    rows = len(batch)
    return {
        name: torch.cat([value, value[:1].detach().expand(batch.fillers, *value.shape[1:])])
        if value.shape[0] == rows
        else value
        for name, value in params.items()
    }


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
