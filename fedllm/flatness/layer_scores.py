"""Score layers by the sharpness of the loss without their prefix: Privacy-Flat's second level.

For a layer l among the *candidates* (the layers that the adapter still changes), with w_-l the adapter without
that layer's part,

    S_l = max over ||v|| <= rho of L(w_-l + v) - L(w_-l)                       (arXiv 2403.04124, level 2)

A layer whose removal makes the landscape sharper is one that keeps it flat. The head is not perturbed.

**The ball.** rho = ``layers.radius`` * ||w||, w being the adapter of all candidates, and v goes over all
remaining layers together. One radius for all l: a ball that shrank with the layer removed (rho relative
to ||w_-l||), or the sum of one ball a layer, would mix that layer's own norm into the comparison.

**The maximum** is taken by one ascent step, v = rho g / ||g|| with g the gradient at w_-l (no step where
g = 0), or replaced by the mean over m random v on the sphere, each with both signs, which cancels the
slope: this needs no gradient. The random directions are public, a function of the seed alone.

**Whose gradient.** :func:`mean_sharpness` takes g of the mean loss, as the paper writes it. One example
then moves v, and with v every example's difference. :func:`example_sharpness` takes each example's own
g: a row of its result is a function of that example and of public values (it is m-sharpness with m = 1,
Foret et al. 2021, arXiv 2010.01412, section 4). That is what the private forms stand on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.flatness.layer_choice import kept_rows
from fedllm.models.adapters.base import group_of, layer_of
from fedllm.models.prefix import PREFIX
from fedllm.settings.experiment import Settings
from fedllm.tasks.base import Params
from fedllm.training.batch.contained import Failures, example_rows
from fedllm.training.tunable import Tunable
from privacy.randomness import generator


@dataclass(frozen=True)
class Sharpness:
    """Method of measuring sharpness.

    Attributes:
        measure: ``layers.measure``.
        radius: norm of the perturbation over the norm of the candidates' prefix.
        directions: number of random directions; for the measure ``random`` alone.
        seed: of these directions; public.
        max_tokens: padded tokens of a micro-batch.
    """

    measure: str
    radius: float
    directions: int
    seed: int
    max_tokens: int


def make_sharpness(settings: Settings) -> Sharpness:
    """Return the measure that the settings ask for."""
    layers = settings.layers
    return Sharpness(
        measure=layers.measure,
        radius=layers.radius,
        directions=layers.directions,
        seed=settings.seed,
        max_tokens=settings.client.max_tokens,
    )


def example_sharpness(
    tunable: Tunable,
    params: Params,
    features: Sequence[Feature],
    candidates: Sequence[int],
    how: Sharpness,
    failures: Failures | None = None,
) -> Tensor:
    """Each example's own S_l for each candidate, float64 [n, candidates] on the CPU.

    Row i depends on example i alone (up to rounding: batch mates change only the order of sums).
    Not bounded yet, and private.

    Args:
        params: the trainable tensors of the layers of ``tunable``.
        candidates: layers that carry a prefix, at least two, ascending.
        failures: an example that raises has a difference of zero and is counted there; None passes it on.

    Raises:
        ValueError: candidates that the adapter does not have, or fewer than two.
    """
    found = torch.zeros(len(features), len(candidates), dtype=torch.float64)
    for column, reduced in enumerate(_without_each(tunable, params, candidates, how)):
        for group in tunable.task.batches(features, how.max_tokens):
            (rows,) = example_rows(
                partial(_differences_of, reduced), [features[i] for i in group], [()], failures
            )
            found[group, column] = rows.double()
    return found


def _differences_of(reduced: _Reduced, chosen: Sequence[Feature]) -> list[Tensor]:
    batch = reduced.tunable.task.collate(chosen)
    return [_example_differences(reduced, batch).double().cpu()]


def mean_sharpness(
    tunable: Tunable,
    params: Params,
    features: Sequence[Feature],
    candidates: Sequence[int],
    how: Sharpness,
) -> Tensor:
    """S_l of the mean loss over ``features`` for each candidate, float64 [candidates] on the CPU.

    As the paper writes it: one v for all examples (``layers.measure = "example-ascent"``: the mean of
    each one's own). No guarantee on private data, whatever is added to it: its sensitivity to one
    example is not bounded by anything here.

    Args, Raises: as :func:`example_sharpness`; and ValueError without features.
    """
    if not features:
        raise ValueError("Expected examples to measure the layers' sharpness on, got none")
    if how.measure == "example-ascent":
        return example_sharpness(tunable, params, features, candidates, how).mean(0)
    scores = []
    for reduced in _without_each(tunable, params, candidates, how):
        if reduced.directions is None:
            moves = [reduced.steps(_mean_gradient(reduced, features, how.max_tokens)[None])[0]]
        else:
            moves = list(reduced.signed_directions())
        groups = tunable.task.batches(features, how.max_tokens)
        total = 0.0
        for group in groups:
            batch = tunable.task.collate([features[i] for i in group])
            with torch.no_grad():
                before = reduced.losses(reduced.point, batch)
                after = [reduced.losses(reduced.point + move, batch) for move in moves]
            total += float((torch.stack(after).double().mean(0) - before.double()).sum())
        scores.append(total / len(features))
    return torch.tensor(scores, dtype=torch.float64)


def check_candidates(tunable: Tunable, candidates: Sequence[int]) -> None:
    """Refuse candidates that cannot be scored.

    Raises:
        ValueError: fewer than two, not ascending, or not changed by the adapter.
    """
    layers = tunable.layers
    if len(candidates) < 2 or list(candidates) != sorted(set(candidates) & set(layers)):
        raise ValueError(
            f"Expected at least two ascending layers among {list(layers)}, which the adapter changes, got "
            f"candidates={list(candidates)}"
        )


@dataclass(frozen=True)
class _Reduced:
    """The model without one candidate's part of the adapter.

    Attributes:
        tunable: with the remaining layers.
        params: on the backbone's device, of the remaining layers.
        layout: name and shape of each tensor of the adapter, in the order of ``point``.
        radius: rho, of this ball and of every other candidate's.
        directions: random ones in the remaining coordinates [m, d] of norm rho, or None for ascent.
    """

    tunable: Tunable
    params: dict[str, Tensor]
    layout: dict[str, torch.Size]
    radius: float
    directions: Tensor | None

    @property
    def point(self) -> Tensor:
        """The remaining adapter as one vector [d]."""
        return torch.cat([self.params[name].reshape(-1) for name in self.layout])

    def losses(self, point: Tensor, batch: Batch) -> Tensor:
        """Loss of each example [B] at ``point``: one for all [d], or one an example [B, d]."""
        sizes = [shape.numel() for shape in self.layout.values()]
        shapes = self.layout.values()
        if point.dim() == 1:
            own = {
                name: piece.reshape(shape)
                for name, piece, shape in zip(self.layout, point.split(sizes), shapes, strict=True)
            }
            return self.tunable.losses(self.tunable.expanded(self.params | own, len(batch)), batch)
        given = self.tunable.expanded(self.params, len(batch))
        for name, piece, shape in zip(self.layout, point.split(sizes, dim=1), shapes, strict=True):
            given[name] = piece.reshape(len(batch), *shape)
        return self.tunable.losses(given, batch)

    def steps(self, gradients: Tensor) -> Tensor:
        """rho g / ||g|| for each of the gradients [B, ...]; zero where g is zero or not finite."""
        norms = gradients.double().flatten(1).norm(dim=1)
        usable = norms.isfinite() & (norms > 0)
        factors = torch.where(usable, self.radius / torch.where(usable, norms, 1.0), 0.0)
        shape = (-1, *[1] * (gradients.dim() - 1))
        found = torch.where(usable.view(shape), gradients.double(), 0.0) * factors.view(shape)
        return found.to(gradients.dtype)

    def signed_directions(self) -> Iterator[Tensor]:
        """Each random direction, and its opposite."""
        for direction in () if self.directions is None else self.directions:
            yield direction
            yield -direction


def _without_each(
    tunable: Tunable, params: Params, candidates: Sequence[int], how: Sharpness
) -> Iterator[_Reduced]:
    check_candidates(tunable, candidates)
    device = tunable.backbone.device
    moved = {name: params[name].to(device=device, dtype=torch.float32) for name in sorted(params)}
    whole = _Parts(moved, tunable.layers)
    radius = how.radius * float(whole.of(candidates).double().norm())
    drawn = None
    if how.measure == "random":
        drawn = _directions(how, whole.size).to(device)
    for left_out in candidates:
        rest = [layer for layer in candidates if layer != left_out]
        directions = None
        if drawn is not None:
            part = whole.rows_of(drawn, rest)
            norms = part.double().norm(dim=1)
            directions = (part.double() * (radius / norms)[:, None]).float()
        kept = kept_rows(moved, tunable.layers, rest)
        shapes = {name: kept[name].shape for name in _Parts(kept, rest).names}
        yield _Reduced(tunable.keep(rest), kept, shapes, radius, directions)


class _Parts:
    """The adapter's tensors as one vector, layer by layer within each tensor.

    Args:
        params: all tensors.
        layers: of the adapter; a prefix has a row for each.
    """

    def __init__(self, params: Params, layers: Sequence[int]) -> None:
        self.names = [name for name in sorted(params) if name == PREFIX or group_of(name)]
        self.vector = torch.cat([params[name].reshape(-1) for name in self.names])
        owners = []
        for name in self.names:
            size, layer = params[name].numel(), layer_of(name)
            if name == PREFIX:
                owners.append(torch.tensor(list(layers)).repeat_interleave(size // len(layers)))
            else:  # what lies outside of the layers stays, whichever layer is left out
                owners.append(torch.full((size,), -1 if layer is None else layer))
        self._owner = torch.cat(owners)

    @property
    def size(self) -> int:
        """Numbers in all."""
        return int(self.vector.numel())

    def of(self, layers: Sequence[int]) -> Tensor:
        """The coordinates of these layers."""
        return self.rows_of(self.vector[None], layers)[0]

    def rows_of(self, rows: Tensor, layers: Sequence[int]) -> Tensor:
        """The same coordinates of vectors (n, size)."""
        chosen = torch.isin(self._owner, torch.tensor([-1, *layers]))
        return rows[:, chosen.to(rows.device)]


def _directions(how: Sharpness, size: int) -> Tensor:
    """Gaussian directions for the whole adapter, float32 [m, size]; the same for all who measure."""
    rng = generator(how.seed, "layers", "directions")
    drawn = rng.standard_normal((how.directions, size))
    return torch.from_numpy(drawn).float()


def _example_differences(reduced: _Reduced, batch: Batch) -> Tensor:
    """S_l of each example's own loss, [B]."""
    if reduced.directions is not None:
        with torch.no_grad():
            before = reduced.losses(reduced.point, batch)
            after = [
                reduced.losses(reduced.point + move, batch) for move in reduced.signed_directions()
            ]
        return torch.stack(after).mean(0) - before
    point = reduced.point.expand(len(batch), -1)
    leaf = point.clone().requires_grad_(True)
    before = reduced.losses(leaf, batch)
    (gradient,) = torch.autograd.grad(before.sum(), [leaf])
    with torch.no_grad():
        moved = point + reduced.steps(gradient)
        return reduced.losses(moved, batch) - before.detach()


def _mean_gradient(reduced: _Reduced, features: Sequence[Feature], max_tokens: int) -> Tensor:
    """Gradient of the mean loss with respect to the remaining adapter."""
    total = torch.zeros_like(reduced.point)
    task = reduced.tunable.task
    for group in task.batches(features, max_tokens):
        batch = task.collate([features[i] for i in group])
        leaf = reduced.point.clone().requires_grad_(True)
        losses = reduced.losses(leaf, batch)
        total += torch.autograd.grad(losses.sum(), [leaf])[0]
    return total / len(features)
