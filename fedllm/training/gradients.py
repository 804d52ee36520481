"""Gradients of the trainable tensors: one per example, clipped and summed; or plainly summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedllm.codec.base import Codec
from fedllm.data.batches import Batch, Feature
from fedllm.models.prefix import PREFIX
from fedllm.tasks.base import expand_params
from fedllm.training.batch.contained import Failures, example_rows, report_lost_step
from fedllm.training.ghost.choice import recorded_names
from fedllm.training.ghost.clipped import recorded_clipped_sum
from fedllm.training.ghost.record import record
from fedllm.training.perturbation import Perturbation
from fedllm.training.tunable import Tunable
from privacy.mechanisms.clipping import ClippedSum, clip_and_sum


def gradient_scales(prefix_scale: float, params: Mapping[str, Tensor]) -> dict[str, float]:
    """Return public factor of each tensor before clipping: ``prefix_scale`` for the prefix, else 1."""
    return {name: prefix_scale if name == PREFIX else 1.0 for name in params}


def per_example_gradients(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    batch: Batch,
    perturbation: Perturbation | None = None,
) -> dict[str, Tensor]:
    """Return the gradient of each example's own loss: tensors of shape (B, ...), float32.

    The trainable tensors are expanded to one copy an example, the copies are the leaves, and one
    backward pass of the summed losses gives every example's gradient at the cost of a plain step.

    Guarantee: row i depends on example i, ``params`` and the perturbation's radius alone.

    Args:
        perturbation: each example is differentiated at its own perturbed copy, along the gradient of
            its own loss at ``params``: a second pass over the same batch.

    Tensors that all examples share (whole weights) get their rows from the factors: for a few examples.

    Raises:
        ValueError: the perturbation does not fit the tensors.
    """
    shared = tunable.adapter.shared & params.keys()
    if shared:
        if perturbation is not None:
            raise ValueError(
                f"Expected awp.form=none or batch for whole weights (a point of its own for each example is a copy of "
                f"them), got per-example with {min(shared)}"
            )
        return record(tunable, params, batch, shared).gradients()
    copies = expand_params(params, len(batch))
    grads = _gradients_of_copies(tunable, copies, batch)
    if perturbation is None:
        return grads
    moved = {name: copies[name] + v for name, v in perturbation.at(params, grads).items()}
    del grads  # not to be held while the second pass runs
    return _gradients_of_copies(tunable, copies | moved, batch)


def _gradients_of_copies(
    tunable: Tunable, copies: Mapping[str, Tensor], batch: Batch
) -> dict[str, Tensor]:
    """Return gradients at ``copies`` (B, ...): row i of the i-th example's loss at the i-th copy."""
    leaves = {
        name: value.detach().contiguous().requires_grad_(True) for name, value in copies.items()
    }
    losses = tunable.losses(leaves, batch)
    grads = torch.autograd.grad(losses.sum(), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True))


def clipped_gradient_sum(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    *,
    clip_norm: float,
    scales: Mapping[str, float],
    max_tokens: int,
    codec: Codec | None = None,
    perturbation: Perturbation | None = None,
    failures: Failures | None = None,
    examples: int | None = None,
) -> ClippedSum:
    """Return the sum over ``features`` of each example's gradient, clipped to ``clip_norm`` over all tensors.

    By a copy of the tensors an example, or where these are too large by the factors of the gradients
    (:mod:`fedllm.training.ghost`); both are the same sum, to rounding.

    Guarantee: the sensitivity of the result to adding or removing one example is ``clip_norm``, in the
    coordinates of ``scales``, with a perturbation too. No feature at all gives zeros (a Poisson batch may
    be empty).

    Args:
        params: the point at which to differentiate, on the backbone's device.
        scales: factor of each tensor, see :func:`privacy.mechanisms.clipping.clip_and_sum`.
        max_tokens: size of a physical micro-batch.
        codec: each example's gradient (all tensors, scaled, in one vector) is projected first, and
            its *code* is clipped to ``clip_norm``: that bounds the sensitivity of the sum of codes
            whatever the projection does.
        perturbation: each example's gradient is taken at its own perturbed point, see
            :func:`per_example_gradients`.
        failures: an example that raises counts as a gradient of zero and is counted there
            (:mod:`fedllm.training.batch.contained`); None passes the exception on.
        examples: how many of the first features are examples, where others fill a fixed shape
            (:mod:`fedllm.training.batch.fixed_shape`): those count as zero, and so, row by row, does what is not finite. None:
            all are.

    Returns:
        Sums in the order of sorted names (with a codec: one sum of codes, [k]); counts over all
        micro-batches.
    """
    recorded = tunable.adapter.shared & params.keys()
    if codec is None and perturbation is None:
        recorded = recorded_names(tunable, params, max_tokens)
    if recorded:
        if codec is not None or perturbation is not None:
            raise ValueError(
                "Expected neither codec.noise=in-code nor awp.form=per-example for whole weights (an example's gradient "
                f"is known by its factors alone), got one with {min(recorded)}"
            )
        return recorded_clipped_sum(
            *(tunable, params, features, recorded),
            clip_norm=clip_norm,
            scales=scales,
            max_tokens=max_tokens,
            failures=failures,
            examples=examples,
        )
    names = sorted(params)
    factors = [scales[name] for name in names]
    sums = [torch.zeros_like(params[name]) for name in names]
    if codec is not None:
        sums = [torch.zeros(codec.code_dimension, device=sums[0].device)]
    count, clipped, nonfinite, norms = 0, 0, 0, [torch.zeros(0)]
    shapes, row_factors = [params[name].shape for name in names], factors
    if codec is not None:  # rows are codes, scaled before
        shapes, row_factors = [sums[0].shape], [1.0]

    def compute(chosen: Sequence[Feature]) -> list[Tensor]:
        batch = tunable.task.collate(chosen)
        grads = per_example_gradients(tunable, params, batch, perturbation)
        rows = [grads.pop(name) for name in names]
        if codec is None:
            return rows
        scaled = [row.flatten(1) * f for row, f in zip(rows, factors, strict=True)]
        return [codec.project(torch.cat(scaled, dim=1))]

    before = 0 if failures is None else failures.count
    for group in tunable.task.batches(features, max_tokens):
        chosen = [features[i] for i in group]
        rows = example_rows(compute, chosen, shapes, failures, sums[0].device)
        real = len(group)
        if examples is not None:
            real = sum(i < examples for i in group)
            rows, bad = fixed_rows(rows, real)
            nonfinite += bad
        part = clip_and_sum(rows, clip_norm, row_factors)
        sums = [total + new for total, new in zip(sums, part.sums, strict=True)]
        count += real
        clipped += part.clipped
        nonfinite += part.nonfinite
        norms.append(part.norms[:real].cpu())
    if failures is not None and failures.count > before:
        report_lost_step(count, failures.count - before)
    return ClippedSum(sums, count, clipped, nonfinite, torch.cat(norms))


def fixed_rows(rows: Sequence[Tensor], examples: int) -> tuple[list[Tensor], int]:
    """Return the rows with zeros instead of fillers and of examples that are not finite; how many are not.

    All of it by selection, in the shapes that it came in: nothing is left out, and nothing multiplied.
    """
    place = torch.arange(rows[0].shape[0], device=rows[0].device)
    finite = torch.stack([row.flatten(1).isfinite().all(1) for row in rows]).all(0)
    kept = finite & (place < examples)
    bad = int((~finite & (place < examples)).sum())
    chosen = [
        torch.where(kept.view(-1, *[1] * (row.dim() - 1)), row, torch.zeros_like(row))
        for row in rows
    ]
    return chosen, bad


def gradient_sum(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    *,
    max_tokens: int,
    perturbation: Perturbation | None = None,
    failures: Failures | None = None,
) -> list[Tensor]:
    """Return plain sum of the gradients, in the order of sorted names: no clipping, no privacy.

    Args:
        perturbation, failures: as for :func:`clipped_gradient_sum`.
    """
    names = sorted(params)
    sums = [torch.zeros_like(params[name]) for name in names]

    def compute(chosen: Sequence[Feature]) -> list[Tensor]:
        """Return the sum over the chosen examples, as one row of each tensor."""
        batch = tunable.task.collate(chosen)
        if perturbation is not None:
            rows = per_example_gradients(tunable, params, batch, perturbation)
            return [rows[name].sum(0, keepdim=True) for name in names]
        leaves = {name: params[name].clone().requires_grad_(True) for name in names}
        losses = tunable.losses(tunable.expanded(leaves, len(batch)), batch)
        grads = torch.autograd.grad(
            losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        return [grad.unsqueeze(0) for grad in grads]

    shapes, before = [params[name].shape for name in names], 0
    if failures is not None:
        before = failures.count
    for group in tunable.task.batches(features, max_tokens):
        chosen = [features[i] for i in group]
        found = example_rows(compute, chosen, shapes, failures, sums[0].device)
        sums = [total + new.sum(0) for total, new in zip(sums, found, strict=True)]
    if failures is not None:
        report_lost_step(len(features), failures.count - before)
    return sums
