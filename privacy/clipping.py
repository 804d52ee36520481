"""L2 clipping that is total: whatever the input, no example contributes more than the norm.

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
_LARGE_NORM_RATIO = 1e15
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


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """[B, ...] as [B, rest]; B or rest may be 0."""
    return tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))


def _row_norms(tensor: torch.Tensor) -> torch.Tensor:
    """Return float64 [B]: norms of the rows, NaN or inf exactly where an entry is not finite."""
    flat = _rows(tensor)
    if flat.numel() == 0:
        return torch.zeros(flat.shape[0], dtype=torch.float64, device=flat.device)
    if flat.dtype != torch.float64:  # squares of float32 cannot overflow float64
        norms: torch.Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
        return norms
    largest = flat.abs().amax(dim=1)
    safe = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    norms = torch.linalg.vector_norm(flat / safe[:, None], dim=1) * safe
    # finite entries whose norm overflows float64 count as huge, not as non-finite
    overflowed = torch.isinf(norms) & torch.isfinite(largest)
    return torch.where(overflowed, torch.finfo(torch.float64).max, norms)


def clip_and_sum(
    per_example: Sequence[torch.Tensor],
    clip_norm: float,
    scales: Sequence[float] | None = None,
) -> ClippedSum:
    """Clip each example's concatenated vector to an L2 norm, and sum over the examples.

    The L2 sensitivity of the concatenated sums is clip_norm under add-or-remove-one, and
    2 * clip_norm under replace-one.

    Args:
      per_example: Tensors [B, ...], one for each trainable tensor, any floating dtype; B may be 0.
      clip_norm: The bound, 0 < clip_norm <= 1e30, in the scaled coordinates.
      scales: One positive public factor for each tensor; the vector is multiplied by it, then
        clipped and summed in these coordinates. The caller divides by it after noising.

    Returns:
      The sums and counts. All finite, whatever the input.

    Raises:
      ValueError: A bound or scale is not positive and finite, or the shapes do not match.
    """
    factors = _check(per_example, clip_norm, scales)
    per_example = [tensor.detach() for tensor in per_example]
    count = per_example[0].shape[0]
    parts = torch.stack(
        [_row_norms(t).mul(s) for t, s in zip(per_example, factors, strict=True)], dim=1
    )
    largest = parts.amax(dim=1)  # [B]; amax propagates NaN
    finite = torch.isfinite(largest)
    safe = torch.where(finite & (largest > 0), largest, 1.0)
    norms = torch.linalg.vector_norm(parts / safe[:, None], dim=1) * safe
    norms = torch.where(finite, norms, torch.inf)
    clipped = finite & (norms > clip_norm)
    denominator = torch.where(clipped, norms, 1.0)
    coefficients = torch.where(clipped, clip_norm / denominator * _MARGIN, 1.0)
    keep = torch.nonzero(finite & (norms > 0)).flatten()
    everything = keep.numel() == count
    kept = coefficients[keep]
    huge = keep.numel() > 0 and bool((norms[keep].max() / clip_norm) > _LARGE_NORM_RATIO)

    sums: list[torch.Tensor] = []
    for tensor, scale in zip(per_example, factors, strict=True):
        flat = _rows(tensor)
        flat = flat if everything else flat[keep]
        if huge or tensor.dtype == torch.float64 or not 1e-15 < scale < 1e15:
            # Bring rows to the order of 1 before scaling: no factor under- or overflows.
            row = norms[keep]
            unit = flat.to(torch.float64) / row[:, None] * scale
            total = (kept * row).clamp(max=clip_norm) @ unit
        else:
            total = (kept * scale).to(torch.float32) @ flat.to(torch.float32)
        sums.append(total.to(torch.float32).reshape(tensor.shape[1:]))
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
