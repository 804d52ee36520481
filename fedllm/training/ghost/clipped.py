"""The clipped sum of gradients that are known by their factors: norms first, then one weighted product a matrix.

Why not a second backward pass of the losses, weighted by the clipping factors: it costs a forward pass and the gradient
of every layer's input once more, and it rounds in its own way, so that what is added would not be what was measured. The
product here is of the recorded factors, whose norms were taken. It keeps the gradients of the matrices' outputs until
the norms are known: as many numbers as the inputs that are kept anyway.

Guarantee: as for :func:`fedllm.training.gradients.clipped_gradient_sum`. A norm is never below the true one, and covers
the rounding of what is added (:mod:`fedllm.training.ghost.factors`); an example that is not finite is replaced by zero in both factors, and what an example adds
is a function of that example and public values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.training.batch.contained import Failures, report_lost_step
from fedllm.training.ghost.factors import ROUNDING
from fedllm.training.ghost.record import Recorded, record
from fedllm.training.tunable import Tunable
from privacy.mechanisms.clipping import ClippedSum, clip_coefficients

Compute = Callable[[Sequence[Feature], int], ClippedSum]
"""Clipped sum of some features, of which the first are examples and the others fillers."""


def recorded_clipped_sum(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    names: frozenset[str],
    *,
    clip_norm: float,
    scales: Mapping[str, float],
    max_tokens: int,
    failures: Failures | None = None,
    examples: int | None = None,
) -> ClippedSum:
    """Return the sum of clipped gradients, see :func:`fedllm.training.gradients.clipped_gradient_sum`.

    Args:
        names: matrices whose factors are recorded.

    Returns:
        Sums in the order of sorted names; the norm of an example that is not finite is infinite, that of one that
        raised 0.
    """
    ordered = sorted(params)
    sums = [torch.zeros_like(params[name]) for name in ordered]

    def compute(chosen: Sequence[Feature], real: int) -> ClippedSum:
        found = record(tunable, params, tunable.task.collate(chosen), names)
        return clipped(found, real, len(chosen), clip_norm, scales)

    count, cut, bad, norms = 0, 0, 0, [torch.zeros(0)]
    before = 0 if failures is None else failures.count
    for group in tunable.task.batches(features, max_tokens):
        real = len(group) if examples is None else sum(i < examples for i in group)
        for part in _contained(compute, [features[i] for i in group], real, failures):
            for total, new in zip(sums, part.sums, strict=False):  # none of an example that raised
                total += new
            count, cut, bad = count + part.count, cut + part.clipped, bad + part.nonfinite
            norms.append(part.norms.cpu())
    if failures is not None and failures.count > before:
        report_lost_step(count, failures.count - before)
    return ClippedSum(sums, count, cut, bad, torch.cat(norms))


def clipped(
    found: Recorded, real: int, examples: int, clip_norm: float, scales: Mapping[str, float]
) -> ClippedSum:
    """Clip and sum one micro-batch's gradients.

    Args:
        real: how many of the first rows count; the others are fillers.
        examples: rows in all.
        scales: factor of each tensor, as of :func:`privacy.mechanisms.clipping.clip_and_sum`.
    """
    device = next(iter(found.factors.values())).device
    finite = torch.ones(examples, dtype=torch.bool, device=device)
    squares = torch.zeros(examples, dtype=torch.float64, device=device)
    rounding = torch.zeros_like(squares)
    for name, row in found.rows.items():
        finite &= row.flatten(1).isfinite().all(1)
        squares += (row.flatten(1).double() * scales[name]).square().sum(1)
    for name, factors in found.factors.items():
        finite &= factors.finite()
        own, sizes = factors.measure()
        squares += own * scales[name] ** 2
        rounding += sizes * (scales[name] * ROUNDING)
    norms = squares.sqrt() + rounding
    counted = torch.arange(examples, device=device) < real
    finite &= norms.isfinite()
    kept = finite & counted
    factor, cut = clip_coefficients(norms, kept, clip_norm)
    weights = torch.where(kept, factor, 0.0)
    sums = []
    for name in sorted([*found.rows, *found.factors]):
        if name in found.factors:
            sums.append(found.factors[name].weighted_sum(weights * scales[name], kept))
            continue
        row = found.rows[name].flatten(1)
        chosen = torch.where(kept.unsqueeze(1), row, 0.0).double()
        total = (weights * scales[name]) @ chosen
        sums.append(total.float().view(found.rows[name].shape[1:]))
    measured = torch.where(finite, norms, torch.inf)[:real]
    bad = int((~finite & counted).sum())
    return ClippedSum(sums, real, int(cut.sum()), bad, measured)


def _contained(
    compute: Compute, features: Sequence[Feature], real: int, failures: Failures | None
) -> Iterator[ClippedSum]:
    """The sum of ``features``, or where that raises those of one at a time, nothing for each that raises alone.

    See :mod:`fedllm.training.batch.contained`.
    """
    if failures is None:
        yield compute(features, real)
        return
    part = None
    try:
        part = compute(features, real)
    except Exception as error:
        if len(features) == 1:
            failures.add(error)
            part = ClippedSum([], real, 0, 0, torch.zeros(real, dtype=torch.float64))
    if part is not None:
        yield part
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    for place, each in enumerate(features):
        yield from _contained(compute, [each], int(place < real), failures)
