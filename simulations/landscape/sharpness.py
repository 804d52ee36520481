"""Measure the sharpness of a model's minimum: eigenvalue, trace, and the increase within a radius.

All of it reads the loss of examples, and nothing here adds noise: on private examples the numbers are
not covered by any guarantee. Callers measure on public or held-out text, or label what they print
(:mod:`simulations.landscape.checkpoints`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privacy.randomness import generator
from simulations.landscape.objective import Objective

Product = Callable[[Tensor], Tensor]
Advance = Callable[[], None]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Eigenvalue:
    """The largest eigenvalue of a symmetric matrix.

    Attributes:
        value: the Rayleigh quotient of ``vector``.
        residual: the norm of H v - value v: some eigenvalue lies within this distance of ``value``.
        products: Hessian-vector products spent.
        converged: whether the residual reached the tolerance.
        vector: (d,), norm 1; its first coordinate of largest size is positive.
    """

    value: float
    residual: float
    products: int
    converged: bool
    vector: Tensor


def top_eigenvalue(
    product: Product,
    like: Tensor,
    *,
    products: int = 60,
    tolerance: float = 0.02,
    seed: int = 0,
    advance: Advance = _nothing,
) -> Eigenvalue:
    """Return the algebraically largest eigenvalue, by power iteration.

    Power iteration finds the eigenvalue of largest size. Where that one is negative (a point that is
    no minimum), it is subtracted from the matrix, which makes all eigenvalues >= 0 and the wanted one the
    largest, and the iteration runs once more.

    Args:
        product: v (d,) -> H v, H symmetric.
        like: a tensor of the vector's shape, dtype and device; coordinates where it is 0 are left at 0.
        products: at most so many in each of the two iterations.
        tolerance: stop where the residual is below this share of the value.
        seed: of the starting vector.

    Raises:
        ValueError: nothing to iterate on, or a product that is not finite.
    """
    start = torch.from_numpy(generator(seed, "power-iteration").standard_normal(like.numel()))
    start = start.to(like) * (like != 0)
    if float(start.norm()) == 0:
        raise ValueError("Expected coordinates that can move, got none (every filter is zero)")
    first = _power(product, start, 0.0, products, tolerance, advance)
    if first.value >= 0:
        return first
    shift = first.value - first.residual
    second = _power(product, start, shift, products, tolerance, advance)
    spent = first.products + second.products
    return Eigenvalue(second.value, second.residual, spent, second.converged, second.vector)


def _power(
    product: Product, start: Tensor, shift: float, limit: int, tolerance: float, advance: Advance
) -> Eigenvalue:
    """Run power iteration on H - shift I; value, residual and vector are those of H."""
    vector = start / start.norm()
    value = residual = 0.0
    spent = 0
    converged = False
    while spent < limit and not converged:
        image = product(vector)
        spent += 1
        advance()
        value = float(vector @ image)
        if not math.isfinite(value):
            raise ValueError(f"Expected finite Hessian-vector products, got {value}")
        residual = float((image - value * vector).norm())
        converged = residual <= tolerance * abs(value)
        ahead = image - shift * vector
        size = float(ahead.norm())
        if size == 0:  # H is shift times the identity here: any vector is an eigenvector
            converged = True
        elif not converged:
            vector = ahead / size
    largest = int(vector.abs().argmax())
    return Eigenvalue(value, residual, spent, converged, vector * vector[largest].sign())


def hutchinson_trace(
    product: Product,
    like: Tensor,
    *,
    probes: int = 16,
    seed: int = 0,
    advance: Advance = _nothing,
) -> tuple[float, float]:
    """Return the trace and its standard error: the mean of z' H z over random signs z (Hutchinson 1989).

    Args:
        like: as in :func:`top_eigenvalue`.
        probes: number of vectors z, at least 2.

    Raises:
        ValueError: fewer than 2 probes.
    """
    if probes < 2:
        raise ValueError(f"Expected at least 2 probes, got probes={probes}")
    rng = generator(seed, "hutchinson")
    found = []
    for _ in range(probes):
        signs = torch.from_numpy(rng.integers(0, 2, like.numel()) * 2.0 - 1.0).to(like)
        signs = signs * (like != 0)
        found.append(float(signs @ product(signs)))
        advance()
    values = torch.tensor(found, dtype=torch.float64)
    return float(values.mean()), float(values.std() / math.sqrt(probes))


def m_sharpness(
    groups: Sequence[Objective], radius: float, advance: Advance = _nothing
) -> tuple[float, float]:
    """Return the mean over groups of m examples of the loss's rise by one ascent step, and its standard error.

    For each group: L(u*) - L(0) with u* = radius * g / |g|, g the group's own gradient (Foret et al. 2021,
    "Sharpness-aware minimization", equation 2 and section 4.2: m-sharpness). One step approaches the
    maximum within the radius from below. A group whose gradient is zero rises by nothing.

    Args:
        groups: one objective for each group of m examples, all of the same m.
        radius: L2 norm of the step, in the objectives' coordinates.

    Raises:
        ValueError: no groups, or a radius that is not a number above 0.
    """
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"Expected a radius above 0, got radius={radius}")
    if not groups:
        raise ValueError("Expected at least one group of examples, got none")
    rises = []
    for group in groups:
        gradient = group.gradient()
        size = float(gradient.norm())
        step = radius * gradient / size if size > 0 else torch.zeros_like(gradient)
        rises.append(group.value(step) - group.value())
        advance()
    values = torch.tensor(rises, dtype=torch.float64)
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error
