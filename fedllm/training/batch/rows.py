"""Bound the rows of a micro-batch, so that the copies of trained tensors, one an example, stay within public bytes.

Many short examples are few tokens and many copies. The bound is a function of the settings and of the model's shapes: it
depends on no record, and as rows do not depend on their batch mates, it changes a sum by its rounding alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import Tensor

from fedllm.models.adapters.base import Adapter

COPIES = 2**30
"""Most bytes of one set of copies in a micro-batch; their gradients are as many again."""


def rows_limit(adapter: Adapter, own: Mapping[str, Tensor], *, by_example: bool) -> int | None:
    """Return the most rows whose copies take :data:`COPIES` bytes, at least 1; None where nothing is copied.

    Args:
        own: the task's own trained tensors, a head.
        by_example: gradients are needed one by one. Else tensors whose factors can be recorded in the place of copies
            do not count: they are, where copies would take more (:mod:`fedllm.training.ghost.choice`).
    """
    shapes = dict(adapter.shapes()) | {name: tuple(value.shape) for name, value in own.items()}
    left_out = adapter.shared if by_example else adapter.shared | adapter.recordable
    copied = max(
        sum(prod(shape) for name, shape in shapes.items() if name not in left_out | fixed)
        for fixed in (adapter.fixed(1), adapter.fixed(2))
    )
    return max(1, COPIES // (4 * copied)) if copied else None
