"""A mean loss as a function of one flat vector: values, gradients, Hessian-vector products.

Everything that measures flatness looks at a model through this: the mean loss of fixed examples, in
coordinates u around a trained point w0, w(u) = w0 + scales * u. With ``scales`` of ones these are the
weights themselves. With the filters' norms (:func:`filter_norms`) a step of length 1 within one filter
moves that filter by its own norm: the filter normalisation of Li et al. 2018, "Visualizing the loss
landscape of neural nets", section 4, as a change of coordinates.

A *filter* of the prefix is the key or the value vector of one layer, head and position (head_dim
numbers); of a head's matrix, the row of one class. Vectors such as biases are not filters and stay where
they are in these coordinates, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedllm.data.batches import Batch, Feature
from fedllm.training.tunable import Tunable


@dataclass(frozen=True)
class Part:
    """One micro-batch: ``losses(w)`` of a flat w (d,) gives the loss of each of its examples, (B,)."""

    losses: Callable[[Tensor], Tensor]
    examples: int
    tokens: int


class Objective:
    """The mean loss of fixed examples in coordinates u around a point: L(w0 + scales * u).

    Args:
        parts: the micro-batches.
        point: w0, (d,).
        scales: (d,), >= 0; None: ones.

    Raises:
        ValueError: no examples, or shapes that differ.
    """

    def __init__(self, parts: Sequence[Part], point: Tensor, scales: Tensor | None = None) -> None:
        self.parts = tuple(parts)
        self.point = point.detach()
        self.scales = torch.ones_like(self.point) if scales is None else scales.to(self.point)
        self.examples = sum(part.examples for part in parts)
        if self.examples == 0:
            raise ValueError("Expected at least one example to measure on, got none")
        if self.point.ndim != 1 or self.scales.shape != self.point.shape:
            raise ValueError(
                "Expected point and scales of one shape (d,), got "
                f"{tuple(point.shape)} and {tuple(self.scales.shape)}"
            )

    @property
    def dimension(self) -> int:
        """Number of coordinates that a step can move (those with a scale above 0)."""
        return int((self.scales > 0).sum())

    def rescaled(self, scales: Tensor | None) -> Objective:
        """Return the same loss and point in other coordinates."""
        return Objective(self.parts, self.point, scales)

    @torch.no_grad()
    def value(self, shift: Tensor | None = None) -> float:
        """Return L(w0 + scales * shift); at w0 without a shift."""
        where = self.point if shift is None else self.point + self.scales * shift
        total = sum(float(part.losses(where).double().sum()) for part in self.parts)
        return total / self.examples

    def gradient(self) -> Tensor:
        """Return dL/du at u = 0, (d,)."""
        total = torch.zeros_like(self.point)
        for part in self.parts:
            w = self.point.clone().requires_grad_(True)
            total += torch.autograd.grad(part.losses(w).sum(), w)[0]
        return total * self.scales / self.examples

    @contextmanager
    def hessian(self, keep_tokens: int = 4096) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield, within the scope, a function u -> H u, H the Hessian of L with respect to u at u = 0.

        Double backward (Pearlmutter 1994): the gradient of the inner product of gradient and vector. The
        graphs of the gradients of the first ``keep_tokens`` tokens stay in memory, since building one
        costs several times what a product with it does; the other parts are built again for each product.

        SDPA's fused kernels have no second derivative; its composite kernel has, and is used here.
        """
        with _second_derivatives():
            kept: list[tuple[Tensor, Tensor]] = []
            tokens = 0
            for part in self.parts:
                tokens += part.tokens
                if tokens > keep_tokens:
                    break
                kept.append(self._graph(part))

            def product(vector: Tensor) -> Tensor:
                scaled = vector.to(self.point) * self.scales
                total = torch.zeros_like(self.point)
                for number, part in enumerate(self.parts):
                    old = number < len(kept)
                    w, gradient = kept[number] if old else self._graph(part)
                    if gradient.requires_grad:  # else the loss is linear in w
                        total += torch.autograd.grad(gradient, w, scaled, retain_graph=old)[0]
                return total * self.scales / self.examples

            try:
                yield product
            finally:
                kept.clear()

    def _graph(self, part: Part) -> tuple[Tensor, Tensor]:
        w = self.point.clone().requires_grad_(True)
        return w, torch.autograd.grad(part.losses(w).sum(), w, create_graph=True)[0]


@contextmanager
def _second_derivatives() -> Iterator[None]:
    with sdpa_kernel([SDPBackend.MATH]):
        yield


def make_objective(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    *,
    over: Sequence[str],
    max_tokens: int = 2048,
) -> Objective:
    """Return the mean loss of ``features`` as a function of the tensors ``over``, the others held fixed.

    Flat coordinates are the tensors' values in the order of ``over``, as :func:`flatten` gives them.

    Args:
        params: all trained tensors; the point.
        over: names of the tensors that vary.
        max_tokens: padded tokens of a micro-batch (memory).

    Raises:
        ValueError: no features, or a name that is not in ``params``.
    """
    missing = [name for name in over if name not in params]
    if missing or not over:
        raise ValueError(
            f"Expected names of trained tensors ({', '.join(sorted(params))}), got "
            f"{', '.join(missing) or 'none'}"
        )
    device = tunable.backbone.device
    moved = {name: value.detach().to(device) for name, value in params.items()}
    fixed = {name: value for name, value in moved.items() if name not in over}
    shapes = {name: moved[name].shape for name in over}
    parts = []
    for group in tunable.task.batches(features, max_tokens):
        batch = tunable.task.collate([features[i] for i in group])
        losses = _losses_of(tunable, fixed, shapes, batch)
        parts.append(Part(losses, len(batch), batch.n_tokens))
    return Objective(parts, flatten(moved, over))


def _losses_of(
    tunable: Tunable, fixed: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], batch: Batch
) -> Callable[[Tensor], Tensor]:
    def losses(flat: Tensor) -> Tensor:
        pieces = flat.split([shape.numel() for shape in shapes.values()])
        varied = {
            name: piece.reshape(shape)
            for piece, (name, shape) in zip(pieces, shapes.items(), strict=True)
        }
        return tunable.losses(tunable.expanded({**fixed, **varied}, len(batch)), batch)

    return losses


def flatten(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Return the values of the named tensors as one vector (d,), in the order of ``names``."""
    return torch.cat([tensors[name].reshape(-1) for name in names])


def filter_norms(params: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Return for each coordinate the norm of its filter, (d,); 0 outside of filters."""
    return flatten(
        {
            name: params[name].norm(dim=-1, keepdim=True).expand_as(params[name])
            if params[name].ndim > 1
            else torch.zeros_like(params[name])
            for name in names
        },
        names,
    )


def filter_count(params: Mapping[str, Tensor], names: Sequence[str]) -> int:
    """Return the number of filters that are not all zero (those that filter normalisation can move)."""
    return sum(
        int((params[name].norm(dim=-1) > 0).sum()) for name in names if params[name].ndim > 1
    )
