"""Padded shapes of examples, decided by each example's own length and never by its batch.

Per-example clipping bounds what one example contributes only if the others' gradients do not change when it
joins. Padding up to the longest of a batch breaks that twice: the padded positions change with the batch
mates, and so do the rounding and the choice of kernels. Here an example of n tokens is always padded to
:func:`bucket_length` (n), and a micro-batch holds examples of one bucket.

On a CPU the number of rows is left free: a product of matrices gives each row the same bits whatever the
number of rows, as long as that number is a multiple of :data:`ROW_MULTIPLE` (measured with MKL for 1 to 32
threads; :mod:`fedllm.training.batch.independence` measures it again for each model). Elsewhere kernels are chosen by
the number of rows, so it is fixed for each bucket and filled up with rows that are not counted.

Models whose padding would reach tokens get examples of one length instead, or one at a time (:mod:`fedllm.models.grouping`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

ROW_MULTIPLE = 4
"""Rows of a product of matrices on a CPU are a multiple of this."""


@dataclass(frozen=True)
class Shapes:
    """Padding and grouping of examples; public, the same for all examples.

    Attributes:
        least: least distance of two buckets, a multiple of :data:`ROW_MULTIPLE`.
        shortest: shortest bucket, a multiple of ``least``; 0: ``least``.
        parts: buckets between two powers of two: more of them pad less and make more micro-batches.
        tokens: rows times length of every micro-batch where the number of rows is fixed; None: rows are free.
        longest: tokens that the model takes at most; no bucket is longer. None: no bound.
        exact: a bucket for each length, so that there is no padding.
        alone: one example a micro-batch.
        limit: most rows of a micro-batch; None: no bound.
    """

    least: int = 4
    parts: int = 2
    tokens: int | None = None
    longest: int | None = None
    shortest: int = 0
    exact: bool = False
    alone: bool = False
    limit: int | None = None

    def bucket_length(self, length: int) -> int:
        """Return the number of tokens that an example of ``length`` tokens is padded to.

        An example that is longer than the model's positions keeps its own length.
        """
        if self.exact:
            return max(length, 1)
        step = self.least
        while step * 2 * self.parts < length:
            step *= 2
        bucket = max(-(-max(length, 1) // step) * step, self.shortest)
        return bucket if self.longest is None else max(length, min(bucket, self.longest))

    def rows(self, bucket: int, examples: int = 1) -> int | None:
        """Return the number of rows of a micro-batch of so many examples of a bucket; None: as many as examples."""
        if self.alone:
            return None
        if self.tokens is not None:
            return max(examples, 1, self._limited(self.tokens // bucket))
        return -(-examples // ROW_MULTIPLE) * ROW_MULTIPLE if self.exact else None

    def most(self, bucket: int, max_tokens: int) -> int:
        """Return the most examples of a micro-batch of a bucket, of at most so many padded tokens."""
        return 1 if self.alone else max(1, self._limited((self.tokens or max_tokens) // bucket))

    def _limited(self, rows: int) -> int:
        return rows if self.limit is None else min(rows, self.limit)


bucket_length = lru_cache(maxsize=4096)(Shapes.bucket_length)
"""The same, of shapes and a length."""


def shapes_for(
    device: torch.device,
    longest: int | None = None,
    grouping: Literal["padded", "one-length", "alone"] = "padded",
) -> Shapes:
    """Return the shapes for a device: fine buckets and free rows on a CPU, coarse buckets and fixed rows elsewhere.

    Args:
        longest: tokens that the model takes at most.
        grouping: how examples may share a micro-batch (:mod:`fedllm.models.grouping`). Without padding the number of
            rows is a multiple of :data:`ROW_MULTIPLE` on a CPU, and fixed by the length elsewhere.
    """
    if grouping == "alone":
        return Shapes(longest=longest, exact=True, alone=True)
    if grouping == "one-length":
        tokens = None if device.type == "cpu" else 512
        return Shapes(longest=longest, exact=True, tokens=tokens)
    if device.type == "cpu":
        return Shapes(longest=longest, shortest=8)  # few texts are shorter, and a group costs
    return Shapes(least=16, parts=1, tokens=2048, longest=longest)


def micro_batches(
    lengths: Sequence[int], max_tokens: int, shapes: Shapes | None = None
) -> list[list[int]]:
    """Divide examples into groups of one bucket with (group size) * (bucket) <= max_tokens.

    Guarantee: the length that an example is padded to, and with fixed rows the whole shape in which it is
    computed, is a function of its own length and of public numbers.

    Args:
        lengths: tokens in each example.
        max_tokens: budget for one group, padding included; where the number of rows is fixed, that holds.
            An example that exceeds the budget by itself gets a group of its own.
        shapes: the buckets; None: those of a CPU.

    Returns:
        Lists of indices into ``lengths``: each index once, longest bucket first, in a bucket by index. Empty
        for no examples.

    Raises:
        ValueError: max_tokens < 1.
    """
    if max_tokens < 1:
        raise ValueError(f"Expected max_tokens >= 1, got max_tokens={max_tokens}")
    shapes = shapes or Shapes()
    buckets: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        buckets.setdefault(bucket_length(shapes, length), []).append(index)
    groups = []
    for bucket in sorted(buckets, reverse=True):
        room = shapes.most(bucket, max_tokens)
        members = buckets[bucket]
        groups += [members[i : i + room] for i in range(0, len(members), room)]
    return groups
