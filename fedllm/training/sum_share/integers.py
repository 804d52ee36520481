"""A silo's clipped gradients, or its clipped update, as integers on the grid of a sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.training.batch.contained import example_rows, report_lost_step
from fedllm.training.gradients import gradient_scales, per_example_gradients
from fedllm.training.steps import Descent, LocalWork, Tally
from privacy.secure_sum.contributions import clip_and_round


def example_integers(
    work: LocalWork,
    descent: Descent,
    batch: Sequence[Feature],
    tally: Tally,
    *,
    clip: float,
    prefix_scale: float,
    exponent: int,
    max_tokens: int,
) -> tuple[Tensor, int]:
    """Return the sum of the examples' clipped gradients in steps, and the centred count of norms at most ``clip``, doubled.

    Guarantee: an example moves the sum by its own integers alone (:func:`clip_and_round`), and the doubled count by +1 or -1. An
    example that raises counts as zero in the sum and as -1 in the count. As for other mechanisms, an example's gradient is taken to be
    a function of that example; rounding differences between batches of different shapes are not counted.

    Args:
        work: with an encoding, gradients are projected first and their codes are clipped.
        descent: the weights, and the examples' own perturbation.
        tally: counts the examples.
        clip, prefix_scale, exponent, max_tokens: of the mechanism.

    Returns:
        int64 [d], or [k] of codes; a whole number.
    """
    tunable, point = work.tunable, descent.weights
    codec = None if work.encoding is None else work.encoding.codec
    names, scales = sorted(point), gradient_scales(prefix_scale, point)
    factors = [scales[name] for name in names]
    shapes: list[torch.Size] = [point[name].shape for name in names]
    if codec is not None:
        shapes = [torch.Size([codec.code_dimension])]

    def compute(chosen: Sequence[Feature]) -> list[Tensor]:
        grads = per_example_gradients(tunable, point, tunable.task.collate(chosen), descent.own)
        rows = [grads.pop(name) for name in names]
        if codec is None:
            return rows
        scaled = [row.flatten(1) * f for row, f in zip(rows, factors, strict=True)]
        return [codec.project(torch.cat(scaled, dim=1))]

    size = sum(shape.numel() for shape in shapes)
    total, count, before = torch.zeros(size, dtype=torch.int64), 0, tally.failures.count
    for group in tunable.task.batches(batch, max_tokens):
        chosen = [batch[i] for i in group]
        device = point[names[0]].device
        rows = example_rows(compute, chosen, shapes, tally.failures, device)
        part = clip_and_round(rows, clip, factors if codec is None else [1.0], exponent)
        total += torch.cat([value.reshape(-1) for value in part.sums])
        count += 2 * part.below - part.count
        tally.add((part.count, part.clipped, part.nonfinite), part.norms)
    report_lost_step(len(batch), tally.failures.count - before)
    return total, count


def update_integers(
    work: LocalWork, update: dict[str, Tensor], tally: Tally, *, clip: float, exponent: int
) -> tuple[Tensor, int]:
    """Return a silo's clipped update in steps, and +1 where its norm is at most ``clip``, else -1.

    Guarantee: the integers are within those of one record (:func:`clip_and_round`), whatever the update is. Arguments and results as
    of :func:`example_integers`.
    """
    if work.encoding is None:
        vector = torch.cat([update[name].reshape(-1) for name in sorted(update)])
    else:
        vector = work.encoding.codec.project(work.encoding.flatten(update))
    part = clip_and_round([vector.float().unsqueeze(0)], clip, [1.0], exponent)
    tally.clipped, tally.nonfinite = part.clipped, part.nonfinite
    return part.sums[0], 2 * part.below - part.count
