"""Clip gradients in L2 norm. Total: for any input, no example contributes more than the clipping norm.

Clipping as in Abadi et al. 2016, "Deep learning with differential privacy", algorithm 1, with two
additions: an example with a non-finite entry contributes zero and is counted, and one norm is taken
over the concatenation of all tensors. The bound on the sensitivity is stated for real arithmetic;
clipped examples are scaled to a norm 2^-22 (relative) below the bound, so that the rounding of the
scaling itself does not exceed it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_MARGIN = 1.0 - 2.0**-22
# Above this norm a float32 scaling factor loses precision or underflows: go through float64.
_LARGE_RATIO = 1e15
_LARGEST_CLIP_NORM = 1e30  # so that float32 sums stay finite


@dataclass(frozen=True)
class ClippedSum:
    """The sum of clipped per-example vectors.

    Attributes:
      sums: One float32 tensor for each input tensor, of the shape of one example; in the scaled
        coordinates when scales were given.
      count: Number of examples B that were passed in, non-finite ones included.
      clipped: Number of examples whose norm was above the bound (non-finite ones not included).
      nonfinite: Number of examples replaced by zero since an entry was NaN or infinite.
      norms: float64 [B], the norms before clipping (scaled coordinates); infinite for a non-finite
        example. Private data: neither they nor the counts may be released without an event.
    """

    sums: list[torch.Tensor]
    count: int
    clipped: int
    nonfinite: int
    norms: torch.Tensor


def _check(
    per_example: Sequence[torch.Tensor], clip_norm: float, scales: Sequence[float] | None
) -> list[float]:
    if not 0 < clip_norm <= _LARGEST_CLIP_NORM:
        raise ValueError(
            f"Expected 0 < clip_norm <= {_LARGEST_CLIP_NORM:g}, got clip_norm={clip_norm}"
        )
    if not per_example:
        raise ValueError("Expected at least one tensor in per_example, got none")
    for tensor in per_example:
        if tensor.dim() < 1 or not tensor.is_floating_point():
            raise ValueError(
                "Expected floating-point tensors of shape [B, ...] in per_example, got "
                f"shape={tuple(tensor.shape)}, dtype={tensor.dtype}"
            )
        if tensor.shape[0] != per_example[0].shape[0]:
            raise ValueError(
                "Expected the same number of examples in every tensor of per_example, got "
                f"{[t.shape[0] for t in per_example]}"
            )
    if scales is None:
        return [1.0] * len(per_example)
    if len(scales) != len(per_example) or not all(math.isfinite(s) and s > 0 for s in scales):
        raise ValueError(
            f"Expected scales to hold {len(per_example)} finite numbers > 0, got {list(scales)}"
        )
    return [float(s) for s in scales]


def _norms(per_example: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
    """Return the norms of the scaled examples, float64 [B]; NaN or inf exactly where one is not finite.

    Not for float64 input: squares of float32 cannot overflow float64, those of float64 can.
    """
    total = torch.zeros(per_example[0].shape[0], dtype=torch.float64, device=per_example[0].device)
    for tensor, factor in zip(per_example, factors, strict=True):
        flat = tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))  # B or rest may be 0
        if flat.numel():
            norms = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
            total += (norms * factor).square()
    return total.sqrt()


def _sum_of_extremes(
    per_example: Sequence[torch.Tensor], factors: Sequence[float], clip_norm: float
) -> ClippedSum:
    """Clip and sum in float64, with each example first divided by its largest entry.

    For float64 input, and for examples so large that a float32 coefficient would underflow.
    """
    count, device = per_example[0].shape[0], per_example[0].device
    flats = [
        tensor.reshape(count, math.prod(tensor.shape[1:])).to(torch.float64)
        for tensor in per_example
    ]
    largest = torch.zeros(count, dtype=torch.float64, device=device)
    for flat, factor in zip(flats, factors, strict=True):
        if flat.numel():
            largest = torch.maximum(largest, flat.abs().amax(dim=1) * factor)  # keeps NaN
    finite = torch.isfinite(largest)
    keep = torch.nonzero(finite & (largest > 0)).flatten()
    size = largest[keep]
    # Divided first by the largest entry: neither the quotient nor its square can overflow.
    units = [
        (flat[keep] / size[:, None] * factor)
        if factor >= 1
        else (flat[keep] * factor / size[:, None])
        for flat, factor in zip(flats, factors, strict=True)
    ]
    # Norm = relative * size without forming the product, which may overflow.
    relative = torch.stack([u.square().sum(dim=1) for u in units]).sum(dim=0).sqrt()  # >= 1
    too_long = relative > clip_norm / size
    lengths = torch.where(too_long, clip_norm / relative * _MARGIN, size)
    norms = torch.zeros(count, dtype=torch.float64, device=device)
    norms[keep] = (relative * size).clamp(max=torch.finfo(torch.float64).max)
    norms[~finite] = torch.inf
    return ClippedSum(
        sums=[
            (lengths @ unit).to(torch.float32).reshape(tensor.shape[1:])
            for unit, tensor in zip(units, per_example, strict=True)
        ],
        count=count,
        clipped=int(too_long.sum()),
        nonfinite=int((~finite).sum()),
        norms=norms,
    )


def clip_coefficients(
    norms: torch.Tensor, finite: torch.Tensor, clip_norm: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factor that clips each example, and which examples are clipped.

    Args:
      norms: float64 [B], none below the true norm of its example.
      finite: bool [B], which norms count; the factor of another example means nothing.
      clip_norm: The bound, 0 < clip_norm <= 1e30.

    Returns:
      (float64 [B] factors of at most 1, bool [B]).
    """
    if not 0 < clip_norm <= _LARGEST_CLIP_NORM:
        raise ValueError(
            f"Expected 0 < clip_norm <= {_LARGEST_CLIP_NORM:g}, got clip_norm={clip_norm}"
        )
    clipped = finite & (norms > clip_norm)
    # Abadi et al. 2016, algorithm 1: min(1, C / norm), times a margin for the rounding of the product.
    factors = torch.where(clipped, clip_norm / torch.where(clipped, norms, 1.0) * _MARGIN, 1.0)
    return factors, clipped


def clip_and_sum(
    per_example: Sequence[torch.Tensor],
    clip_norm: float,
    scales: Sequence[float] | None = None,
) -> ClippedSum:
    """Clip each example's concatenated vector to an L2 norm, and sum over the examples.

    The L2 sensitivity of the concatenated sums is clip_norm under zero-out and add-or-remove-one, and
    2 * clip_norm under replace-one.

    Args:
      per_example: Tensors [B, ...], one for each trainable tensor, any floating dtype; B may be 0.
      clip_norm: The bound, 0 < clip_norm <= 1e30, in the scaled coordinates.
      scales: One positive public factor for each tensor; the vector is multiplied by it, then
        clipped and summed in these coordinates. The caller divides by it after noising.

    Returns:
      The sums and counts. All finite, whatever the input; an example whose scaled entries are not
      finite counts as non-finite.

    Raises:
      ValueError: A bound or scale is not positive and finite, or the shapes do not match.
    """
    factors = _check(per_example, clip_norm, scales)
    per_example = [tensor.detach() for tensor in per_example]
    count = per_example[0].shape[0]
    if any(tensor.dtype == torch.float64 for tensor in per_example):
        return _sum_of_extremes(per_example, factors, clip_norm)
    norms = _norms(per_example, factors)
    finite = torch.isfinite(norms)
    ratio = torch.where(finite, norms, 0.0).amax() / clip_norm if count else 0.0
    if ratio > _LARGE_RATIO or not all(1 / _LARGE_RATIO < f < _LARGE_RATIO for f in factors):
        return _sum_of_extremes(per_example, factors, clip_norm)
    norms = torch.where(finite, norms, torch.inf)
    coefficients, clipped = clip_coefficients(norms, finite, clip_norm)
    keep = torch.nonzero(finite).flatten()  # a NaN times zero would be NaN: leave its row out
    sums: list[torch.Tensor] = []
    for tensor, factor in zip(per_example, factors, strict=True):
        flat = tensor.reshape(count, math.prod(tensor.shape[1:]))
        flat = flat if keep.numel() == count else flat[keep]
        weights = (coefficients[keep] * factor).to(torch.float32)
        sums.append((weights @ flat.to(torch.float32)).reshape(tensor.shape[1:]))
    return ClippedSum(
        sums=sums,
        count=count,
        clipped=int(clipped.sum()),
        nonfinite=int((~finite).sum()),
        norms=norms,
    )


def clip_vector(vector: torch.Tensor, clip_norm: float) -> tuple[torch.Tensor, bool, bool]:
    """Clip one vector (a client's update) to an L2 norm.

    Args:
      vector: Any shape, any floating dtype.
      clip_norm: The bound, 0 < clip_norm <= 1e30.

    Returns:
      (float32 tensor of the same shape and norm <= clip_norm, whether it was clipped, whether it
      held a non-finite entry and was replaced by zero).

    Raises:
      ValueError: clip_norm is not positive and finite.
    """
    result = clip_and_sum([vector.unsqueeze(0)], clip_norm)
    return result.sums[0], result.clipped > 0, result.nonfinite > 0
