"""The factors of each example's gradient with respect to one matrix: its norm, and weighted sums over examples.

The gradient of example i is ``L_i^T R_i``, the sum over its tokens of outer products. For ``y = W x`` the rows of L are
the gradients of the outputs, those of R the inputs; for embeddings L has a one at the token's id. All uses of a matrix
(a layer that is used many times, embeddings that are the output matrix too) are tokens of one sum, so that terms
between two uses are in the norm.

**Norms** (Goodfellow 2015, arXiv 1510.01799, for one token; Li et al. 2022, arXiv 2110.05679, for several):
``||L^T R||^2 = sum_{s,t} <L_s, L_t> <R_s, R_t>``, two Gram matrices of the tokens; or the product itself where that takes
less arithmetic. In float64, as squares of float32 neither overflow nor underflow there. Where terms cancel, rounding is
relative to A = sum_t ||L_t|| ||R_t|| and not to the norm: the bound on that of the square, times A^2, is added to it.

**Sums** (Bu et al. 2023, arXiv 2210.00038): ``sum_i c_i L_i^T R_i`` is one product over the tokens of all examples. It
is of the very factors that the norm is of: no second backward pass rounds in another way. Each token's outer product is
formed of c_i ||R_t|| L_t and R_t / ||R_t||, which neither overflow nor make a finite product NaN, whatever the factors.
That product is rounded to float32, again relative to A: so :data:`ROUNDING` times A is part of the length that is clipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedllm.models.adapters.tape import Kind, Use

_ROOM = 2**26
"""Bytes of float64 that a norm takes at a time."""
ROUNDING = 2.0**-20
"""Rounding of a sum of products in float32, relative to A: three roundings of each term (2^-22.4) and those of a sum of
some hundred terms."""


@dataclass(frozen=True)
class Factors:
    """The factors of one matrix's gradients.

    Attributes:
        shape: of the matrix, (p, q).
        left: (B, N, p), or None where no use is a product.
        right: (B, N, q), or None.
        ids: (B, M), rows that are looked up, or None.
        rows: (B, M, q), the gradients at these rows, or None.
        examples: B.
        device: of results.
    """

    shape: tuple[int, int]
    left: Tensor | None
    right: Tensor | None
    ids: Tensor | None
    rows: Tensor | None
    examples: int
    device: torch.device

    @classmethod
    def of(
        cls, uses: Sequence[Use], shape: Sequence[int], examples: int, device: torch.device
    ) -> Factors:
        """The factors of the first ``examples`` rows over all uses."""
        reached = [(use, use.gradient) for use in uses if use.gradient is not None]
        left, right, ids, rows = [], [], [], []
        for use, gradient in reached:
            given, slope = use.given[:examples].to(device), gradient[:examples].to(device).float()
            if use.kind is Kind.LOOKUP:
                ids.append(given)
                rows.append(slope)
            elif use.kind is Kind.LINEAR:
                left.append(slope)
                right.append(given.float())
            else:
                left.append(given.float())
                right.append(slope)
        p, q = shape
        parts = (_joined(left), _joined(right), _joined(ids), _joined(rows))
        return cls((p, q), *parts, examples, device)

    def finite(self) -> Tensor:
        """True for each example whose factors are all finite, (B,) bool."""
        found = torch.ones(self.examples, dtype=torch.bool, device=self.device)
        for part in (self.left, self.right, self.rows):
            if part is not None:
                found = found & part.flatten(1).isfinite().all(1)
        return found

    def measure(self) -> tuple[Tensor, Tensor]:
        """Squares of the norms, not below the true ones, and A; each (B,) float64.

        Those of a row that is not finite mean nothing.
        """
        found = [self._measured(chosen) for chosen in self._chunks()]
        return torch.cat([squares for squares, _ in found]), torch.cat([size for _, size in found])

    def weighted_sum(self, weights: Tensor, kept: Tensor) -> Tensor:
        """sum_i weights_i L_i^T R_i over the kept rows, (p, q) float32.

        Args:
            weights: (B,) float64.
            kept: (B,) bool; the factors of other rows are replaced by zeros, both of them.
        """
        total = torch.zeros(self.shape, device=self.device)
        for chosen in self._chunks():
            weight, keep = weights[chosen].view(-1, 1, 1), kept[chosen].view(-1, 1, 1)
            if self.left is not None and self.right is not None:
                left = torch.where(keep, self.left[chosen], 0.0).double()
                right = torch.where(keep, self.right[chosen], 0.0).double()
                size = right.norm(dim=2, keepdim=True)
                unit = (right / torch.where(size > 0, size, 1.0)).float()
                scaled = (left * (weight * size)).float()
                total.addmm_(scaled.flatten(0, 1).T, unit.flatten(0, 1))
            if self.ids is not None and self.rows is not None:
                rows = torch.where(keep, self.rows[chosen], 0.0).double() * weight
                total.index_add_(0, self.ids[chosen].reshape(-1), rows.float().flatten(0, 1))
        return total

    def gradients(self) -> Tensor:
        """The gradients themselves, (B, p, q) float32: a copy an example."""
        found = torch.zeros(self.examples, *self.shape, device=self.device)
        if self.left is not None and self.right is not None:
            found = self.left.transpose(1, 2) @ self.right
        if self.ids is not None and self.rows is not None:
            for row, (ids, own) in enumerate(zip(self.ids, self.rows, strict=True)):
                found[row].index_add_(0, ids, own)
        return found

    # -- norms -----------------------------------------------------------------------------------

    def _tokens(self) -> tuple[int, int]:
        """N and M."""
        return (
            0 if self.left is None else self.left.shape[1],
            0 if self.ids is None else self.ids.shape[1],
        )

    @property
    def by_tokens(self) -> bool:
        """True if Gram matrices take less arithmetic than the product. By shapes alone."""
        (n, m), (p, q) = self._tokens(), self.shape
        return n * (p + q) + m * q + n * m < p * q

    def _chunks(self) -> Iterator[slice]:
        (n, m), (p, q) = self._tokens(), self.shape
        each = n * (p + q) + m * q + (2 * (n + m) ** 2 if self.by_tokens else p * q)
        step = max(1, _ROOM // (8 * max(1, each)))
        for first in range(0, self.examples, step):
            yield slice(first, first + step)

    def _measured(self, chosen: slice) -> tuple[Tensor, Tensor]:
        count = len(range(*chosen.indices(self.examples)))
        sizes = torch.zeros(count, dtype=torch.float64, device=self.device)
        left, right, rows = (
            None if part is None else part[chosen].double()
            for part in (self.left, self.right, self.rows)
        )
        if left is not None and right is not None:
            sizes = sizes + (left.norm(dim=2) * right.norm(dim=2)).sum(1)
        if rows is not None:
            sizes = sizes + rows.norm(dim=2).sum(1)
        ids = None if self.ids is None else self.ids[chosen]
        if left is None and rows is None:  # no loss depends on it
            return sizes, sizes
        if self.by_tokens:
            found = _by_gram(left, right, ids, rows)
        else:
            found = _by_product(left, right, ids, rows, self.shape)
        n, m = self._tokens()
        terms = sum(self.shape) + (n + m) ** 2
        return found.clamp(min=0) + terms * torch.finfo(torch.float64).eps * sizes**2, sizes


def _by_gram(
    left: Tensor | None, right: Tensor | None, ids: Tensor | None, rows: Tensor | None
) -> Tensor:
    """sum over pairs of tokens of both inner products, (B,)."""
    total: Tensor | float = 0.0
    if left is not None and right is not None:
        total = total + ((left @ left.transpose(1, 2)) * (right @ right.transpose(1, 2))).sum(
            (1, 2)
        )
    if ids is not None and rows is not None:
        same = ids.unsqueeze(2) == ids.unsqueeze(1)
        own = rows @ rows.transpose(1, 2)
        total = total + torch.where(same, own, 0.0).sum((1, 2))
        if left is not None and right is not None:  # (B, M, N): entries of L at the ids
            at = left.gather(2, ids.unsqueeze(1).expand(-1, left.shape[1], -1)).transpose(1, 2)
            total = total + 2 * (at * (rows @ right.transpose(1, 2))).sum((1, 2))
    return torch.as_tensor(total)


def _by_product(
    left: Tensor | None,
    right: Tensor | None,
    ids: Tensor | None,
    rows: Tensor | None,
    shape: tuple[int, int],
) -> Tensor:
    """Squares of the entries of L^T R, summed, (B,)."""
    p, q = shape
    if left is not None and right is not None:
        found = left.transpose(1, 2) @ right
    else:
        assert rows is not None
        found = rows.new_zeros(rows.shape[0], p, q)
    if ids is not None and rows is not None:
        flat = found.view(-1, q)
        first = torch.arange(len(ids), device=ids.device).view(-1, 1) * p
        flat.index_add_(0, (ids + first).reshape(-1), rows.reshape(-1, q))
    return found.square().sum((1, 2))


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    """The uses' tokens one after another."""
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
