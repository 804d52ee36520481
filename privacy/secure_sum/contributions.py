"""Clip each record's vector and round it to integers, so that a sum of records is exact.

One record's integers are a function of its own real vector, the clipping norm and the grid. Integers are added without rounding,
in any order and in any groups: adding, removing or emptying a record moves the sum by that record's integers and by nothing else.
So no margin for the accumulation of floating-point sums is needed.

Vectors are divided by the clipping norm C before they are rounded, so that the grid, the share of the noise and their event are the
same for every C: adaptive clipping moves C at no cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from privacy.mechanisms.clipping import clip_coefficients

LARGEST_NORM = 1 + 2.0**-20
"""Bound on the norm of a clipped vector over the clipping norm, as it is in memory.

Proof. The norm is computed in float64 from float32 entries: its relative error is at most (d + 4) 2^-53, d <= 2^30 entries, below 2^-22. A
vector whose computed norm is at most C has a true norm of at most C (1 + 2^-22). A longer one is scaled to C (1 - 2^-22) / norm. The two
products (scale, and factor with entry) and the division by C err by at most 2^-51 together, relative to each entry.
"""
MOST_ENTRIES = 2**30
MOST_RECORDS = 2**28
"""Records of one sum: with a step of 2^-32 or more no sum of so many leaves 64 bits."""
SMALLEST_EXPONENT = -32
_RANGE = (1e-6, 1e6)  # of clipping norms and factors: products stay normal float64 numbers


@dataclass(frozen=True)
class IntegerSum:
    """The sum of records' integers.

    Attributes:
      sums: One int64 tensor on the CPU for each input tensor, of the shape of one record, in steps of the grid of unit C.
      below: Number of records with norm at most C. Private, as are the others.
      count, clipped, nonfinite: Numbers of records: all, those longer than C, and those that count as zero since an entry is
        not finite.
      norms: float64 [B], before clipping; infinite for a record that is not finite.
    """

    sums: list[torch.Tensor]
    below: int
    count: int
    clipped: int
    nonfinite: int
    norms: torch.Tensor


def clip_and_round(
    records: Sequence[torch.Tensor], clip: float, factors: Sequence[float], exponent: int
) -> IntegerSum:
    """Clip each record's concatenated vector to norm `clip`, divide by it, round to nearest and sum the integers.

    Guarantee: a record's integers have L2 norm at most LARGEST_NORM / step + sqrt(d) / 2 (its rounding errors are at most 1/2 an entry),
    below `grid.nearest_sensitivity(LARGEST_NORM, exponent, d)`; two records' integers differ by at most twice that. It is the same
    with -0.0, subnormal numbers and entries of any size: what is not finite counts as zero.

    Args:
      records: Float32 (or narrower) tensors [B, ...], one for each trained tensor; B may be 0. At most 2^30 numbers a record.
      clip: The clipping norm C, 1e-6 to 1e6, in the scaled coordinates.
      factors: Public factor of each tensor before clipping, 1e-6 to 1e6.
      exponent: The step is 2^exponent in units of C, -32 to 0.

    Raises:
      ValueError: A value is out of range, or float64 tensors come (squares of their entries can overflow).
    """
    _check(records, clip, factors, exponent)
    count = records[0].shape[0]
    # float64 is not on every device; integers are added on the CPU in any case.
    rows = [r.detach().to("cpu").reshape(count, math.prod(r.shape[1:])) for r in records]
    squares = torch.zeros(count, dtype=torch.float64)
    for row, factor in zip(rows, factors, strict=True):
        if row.numel():
            squares += (row.to(torch.float64) * factor).square().sum(dim=1)
    norms = squares.sqrt()
    finite = torch.isfinite(norms)
    norms = torch.where(finite, norms, torch.inf)
    coefficients, clipped = clip_coefficients(norms, finite, clip)
    sums = []
    for record, row, factor in zip(records, rows, factors, strict=True):
        scale = coefficients * factor / clip * 2.0**-exponent  # the power of two is exact
        steps = torch.round(row.to(torch.float64) * scale[:, None])
        steps = torch.where(finite[:, None], steps, 0.0)
        sums.append(steps.to(torch.int64).sum(dim=0).reshape(record.shape[1:]))
    return IntegerSum(
        sums=sums,
        below=int((norms <= clip).sum()),
        count=count,
        clipped=int(clipped.sum()),
        nonfinite=int((~finite).sum()),
        norms=norms,
    )


def _check(
    records: Sequence[torch.Tensor], clip: float, factors: Sequence[float], exponent: int
) -> None:
    low, high = _RANGE
    if not records or len(records) != len(factors):
        raise ValueError(
            f"Expected a factor for each of one or more tensors, got {len(records)} and {len(factors)}"
        )
    if not low <= clip <= high or not all(low <= factor <= high for factor in factors):
        raise ValueError(
            f"Expected a clipping norm and factors from {low:g} to {high:g}, got {clip} and {list(factors)}"
        )
    if not SMALLEST_EXPONENT <= exponent <= 0:
        raise ValueError(f"Expected -32 <= exponent <= 0 of the grid, got exponent={exponent}")
    if records[0].dim() and records[0].shape[0] > MOST_RECORDS:
        raise ValueError(f"Expected at most 2^28 records, got {records[0].shape[0]}")
    for record in records:
        narrow = record.is_floating_point() and record.dtype != torch.float64
        if record.dim() < 1 or not narrow or record.shape[0] != records[0].shape[0]:
            raise ValueError(
                "Expected float32 (or narrower) tensors of shape [B, ...], got "
                f"{[(tuple(r.shape), r.dtype) for r in records]}"
            )
    entries = sum(math.prod(record.shape[1:]) for record in records)
    if not 1 <= entries <= MOST_ENTRIES:
        raise ValueError(f"Expected from 1 to 2^30 numbers a record, got {entries}")


def count_weight(share: float) -> float:
    """Return h, half the weight of the count in units of the clipping norm: sqrt(p / (1 - p)).

    Each record adds +h or -h as one more entry of its vector of norm at most 1: both together have norm at most sqrt(1 + h^2) =
    1 / sqrt(1 - p), and with noise z times this norm the vector and the count cost 1 / z^2 together, of which the count has the share p
    (Andrew et al. 2021, theorem 1; `privacy.mechanisms.adaptive_clipping`). The null record adds 0.

    Raises:
      ValueError: The share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"Expected 0 < share < 1, got share={share}")
    return math.sqrt(share / (1 - share))
