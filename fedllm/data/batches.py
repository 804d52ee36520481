"""Tokenised examples and padded batches of them; :mod:`fedllm.data.shapes` says how they are padded and grouped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass
class Feature:
    """One tokenised example.

    Attributes:
        input_ids: the token ids, without padding.
        target: class index for classification, else None.
        target_mask: for generation, 1 at each token whose prediction counts in the loss, 0
            elsewhere; same length as ``input_ids``. Else None.
        values: numbers that are the target, as many in each example: 0 or 1 for each label, or one number. Else None.
        token_targets: for tags, the class index of each token where ``target_mask`` is 1; same length as
            ``input_ids``. Else None.
        segments: for models that tell the first text from the second: the number of each token's text, as the
            tokenizer gives it; same length as ``input_ids``. Else None.
        meta: whatever the task wants to keep (never sent to the model).
    """

    input_ids: list[int]
    target: int | None = None
    target_mask: list[int] | None = None
    segments: list[int] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    values: list[float] | None = None
    token_targets: list[int] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass
class Batch:
    """B examples padded to T tokens; after them come ``fillers`` rows that stand for no example.

    Shapes below are with B + fillers rows; ``len`` counts the examples alone.

    Attributes:
        input_ids: (B, T) int64, padded with the pad id.
        attention_mask: (B, T) int64, 1 at real tokens.
        position_ids: (B, T) int64, or None where the model counts positions itself (encoders).
        targets: (B,) int64 class indices, or None.
        target_mask: (B, T) int64, 1 where the prediction *of* that token counts, or None.
        fillers: number of rows at the end that only fill a fixed shape.
        token_type_ids: (B, T) int64, the number of each token's text, or None where the model has no such input.
        values: (B, K) float32, the numbers that are each example's target, or None.
        token_targets: (B, T) int64, the class index of each token where ``target_mask`` is 1, or None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None = None
    targets: Tensor | None = None
    target_mask: Tensor | None = None
    fillers: int = 0
    token_type_ids: Tensor | None = None
    values: Tensor | None = None
    token_targets: Tensor | None = None

    def __len__(self) -> int:
        return self.input_ids.shape[0] - self.fillers

    @property
    def n_tokens(self) -> int:
        """Number of positions, padding included (B * T)."""
        return self.input_ids.numel()

    @property
    def last_positions(self) -> Tensor:
        """(B,) index of each example's last real token, on either side of padding."""
        length = self.attention_mask.shape[1]
        return length - 1 - self.attention_mask.flip(1).argmax(dim=1)

    def model_inputs(self) -> dict[str, Tensor]:
        """Return keyword arguments for the model's forward."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.position_ids is not None:
            inputs["position_ids"] = self.position_ids
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = self.token_type_ids
        return inputs

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on ``device``."""
        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            moved[item.name] = value.to(device) if isinstance(value, Tensor) else value
        return Batch(**moved)


def position_ids(
    attention_mask: Tensor, offset: int, counted: Literal["tokens", "slots"] = "tokens"
) -> Tensor:
    """Return the position ids (B, T) for a decoder with a prefix of length ``offset``.

    ``tokens`` counts real tokens: offset, offset + 1, ... from each example's first real token, so
    an example's result does not depend on how much padding its batch needs. Differential privacy
    relies on that: an example's gradient must be a function of this example alone. ``slots`` is
    ``arange(T) + offset``, what peft's own forward does; the two agree except under left padding.
    """
    if counted == "slots":
        length = attention_mask.shape[1]
        slots = torch.arange(offset, offset + length, device=attention_mask.device)
        return slots.expand(attention_mask.shape[0], -1)
    if counted != "tokens":
        raise ValueError(f"Expected counted to be 'tokens' or 'slots', got counted={counted!r}")
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0) + offset


def collate(
    features: Sequence[Feature],
    pad_id: int,
    side: Literal["right", "left"] = "right",
    *,
    position_offset: int | None = None,
    length: int | None = None,
    rows: int | None = None,
) -> Batch:
    """Pad ``features`` to one batch.

    Args:
        features: at least one, none empty, all with the same kind of target.
        pad_id: token id for padding (masked, so its value does not matter).
        side: the side of the padding.
        position_offset: for decoders, the prefix length P: adds position ids from P (counted by
            tokens, see :func:`position_ids`). None: no position ids (encoders).
        length: pad to this many tokens instead of the longest example.
        rows: fill up to this many rows, with rows whose tokens are all the pad id and count nowhere.

    Raises:
        ValueError: no features, an empty one, more than ``rows``, differing kinds of targets, unequal mask length.
    """
    if not features:
        raise ValueError("Expected at least one feature, got none")
    if side not in ("right", "left"):
        raise ValueError(f"Expected side to be 'right' or 'left', got side={side!r}")
    longest = max(len(f.input_ids) for f in features)
    total = longest if length is None else length
    if total < longest:
        raise ValueError(f"Expected length >= {longest} (the longest example), got length={length}")
    has_target = {f.target is not None for f in features}
    has_mask = {f.target_mask is not None for f in features}
    has_segments = {f.segments is not None for f in features}
    has_values = {None if f.values is None else len(f.values) for f in features}
    has_classes = {f.token_targets is not None for f in features}
    kinds_of_target: list[set[Any]] = [has_target, has_mask, has_segments, has_values, has_classes]
    if max(map(len, kinds_of_target)) > 1:
        raise ValueError("Expected all features to have the same kind of target, got a mixture")
    fillers = 0 if rows is None else rows - len(features)
    if fillers < 0:
        raise ValueError(f"Expected at most rows={rows} features, got {len(features)}")
    ids = torch.full((len(features) + fillers, total), pad_id, dtype=torch.long)
    attention = torch.zeros_like(ids)
    counted = torch.zeros_like(ids)
    segments = torch.zeros_like(ids)
    classes = torch.zeros_like(ids)
    for row, feature in enumerate(features):
        n = len(feature.input_ids)
        if n == 0:
            raise ValueError(f"Expected at least one token in each feature, got none in row {row}")
        where = slice(0, n) if side == "right" else slice(total - n, total)
        ids[row, where] = torch.tensor(feature.input_ids, dtype=torch.long)
        attention[row, where] = 1
        if feature.segments is not None:
            segments[row, where] = torch.tensor(feature.segments, dtype=torch.long)
        if feature.token_targets is not None:
            if len(feature.token_targets) != n:
                raise ValueError(
                    f"Expected token_targets of {n} entries in row {row}, got {len(feature.token_targets)}"
                )
            classes[row, where] = torch.tensor(feature.token_targets, dtype=torch.long)
        if feature.target_mask is not None:
            if len(feature.target_mask) != n:
                raise ValueError(
                    f"Expected target_mask of {n} entries in row {row}, "
                    f"got {len(feature.target_mask)}"
                )
            counted[row, where] = torch.tensor(feature.target_mask, dtype=torch.long)
    attention[len(features) :] = 1
    counted[len(features) :, -1] = 1
    targets = None
    if has_target == {True}:
        targets = torch.tensor([*(f.target for f in features), *([0] * fillers)])
    positions = None if position_offset is None else position_ids(attention, position_offset)
    mask = counted if has_mask == {True} else None
    kinds = segments if has_segments == {True} else None
    batch = Batch(ids, attention, positions, targets, mask, fillers, kinds)
    if has_values != {None}:
        given = [f.values or [] for f in features]
        rest = [[0.0] * len(given[0])] * fillers
        batch.values = torch.tensor([*given, *rest], dtype=torch.float32)
    if has_classes == {True}:
        batch.token_targets = classes
    return batch
