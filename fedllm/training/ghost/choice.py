"""Choose whether one example's gradient takes a copy of a tensor, or is known by its factors."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from fedllm.training.batch.rows import COPIES
from fedllm.training.tunable import Tunable

log = logging.getLogger("fedllm")

_told: set[str] = set()


def recorded_names(
    tunable: Tunable, params: Mapping[str, Tensor], max_tokens: int
) -> frozenset[str]:
    """Names of the trained tensors whose factors are recorded; the log says why.

    All of the tensors that examples share (whole weights). Of others that can be recorded (LoRA's factors) all or none:
    all where copies for the most examples of a micro-batch would take more than :data:`COPIES`. A function of public
    numbers alone.
    """
    adapter = tunable.adapter
    shared, able = adapter.shared & params.keys(), adapter.recordable & params.keys()
    if able == shared:
        return shared
    needed = most_rows(tunable, max_tokens) * 4 * sum(params[name].numel() for name in able)
    if needed <= COPIES:
        return shared
    words = (
        f"copies of {adapter.form} for a micro-batch would take {needed / 2**30:.1f} GiB (more than "
        f"{COPIES / 2**30:g}): norms of gradients are computed from inputs and output gradients instead"
    )
    if words not in _told:
        _told.add(words)
        log.info(words)
    return able


def most_rows(tunable: Tunable, max_tokens: int) -> int:
    """Most examples of one micro-batch: of the shortest, padded."""
    shapes = tunable.task.shapes
    shortest = shapes.bucket_length(1)
    return shapes.most(shortest, max_tokens)


def recorded_bytes(tunable: Tunable, params: Mapping[str, Tensor], tokens: int) -> int:
    """Bytes that the factors of an example of ``tokens`` tokens take, each matrix used once: its inputs and its outputs'
    gradients, in float32."""
    return sum(4 * tokens * sum(params[name].shape) for name in tunable.adapter.recordable)
