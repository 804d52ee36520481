"""Gaussian priors of a gradient: codecs are fitted to them, and synthetic gradients drawn from them.

A prior is N(mean, diag(variance) + basis^T diag(basis_variance) basis). It is made from released
statistics (:mod:`fedllm.codec.statistics`) or, by the same code without noise, from gradients of public
text. Everything here is post-processing of what was released: it costs no privacy.

The *second moments* decide which coordinates a linear code keeps. ``layerwise`` has a mean, as in
the paper; the others describe E[g g^T] around zero, for a mean gradient of 36,864 numbers would be as
dear to release as the gradient itself, and its direction is in the basis if there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from fedllm.codec.base import state_digest
from fedllm.codec.layout import Layout
from fedllm.codec.statistics import Kind, Statistics

NOISE_ALONE = 0.01
"""Statistics that noise alone gives with a larger probability (:func:`chance_of_noise`) are said to tell
nothing."""


@dataclass(frozen=True)
class Prior:
    """A Gaussian over vectors of dimension d, float32 on the CPU.

    Attributes:
        kind: "layerwise", "factored", "coordinate" or "low-rank".
        mean, variance: [d]; the variance is that next to the basis, >= 0.
        basis: orthonormal rows [r, d]; r may be 0.
        basis_variance: [r], descending, >= 0.
    """

    kind: str
    mean: Tensor
    variance: Tensor
    basis: Tensor
    basis_variance: Tensor

    def __post_init__(self) -> None:
        d, r = self.mean.numel(), self.basis.shape[0]
        shapes = [
            tuple(t.shape) for t in (self.mean, self.variance, self.basis, self.basis_variance)
        ]
        if shapes != [(d,), (d,), (r, d), (r,)]:
            raise ValueError(f"Expected a prior of shapes (d), (d), (r, d), (r), got {shapes}")
        if not all(bool(torch.isfinite(t).all()) for t in self._tensors().values()):
            raise ValueError("Expected a finite prior, got NaN or infinite values")
        if bool((self.variance < 0).any()) or bool((self.basis_variance < 0).any()):
            raise ValueError("Expected variances >= 0 in a prior, got a negative one")

    @property
    def dimension(self) -> int:
        """d."""
        return self.mean.numel()

    @property
    def second_moments(self) -> Tensor:
        """E[g_i^2] outside the basis, [d]: the gain of keeping coordinate i."""
        return self.variance + self.mean.square()

    @property
    def energy(self) -> float:
        """E ||g||^2."""
        return float(self.second_moments.sum(dtype=torch.float64) + self.basis_variance.sum())

    def sample(self, count: int, rng: np.random.Generator) -> Tensor:
        """Draw synthetic gradients, float32 [count, d]."""
        drawn = torch.from_numpy(rng.standard_normal((count, self.dimension), dtype=np.float32))
        drawn.mul_(self.variance.sqrt()).add_(self.mean)
        if rank := self.basis.shape[0]:
            factors = torch.from_numpy(rng.standard_normal((count, rank), dtype=np.float32))
            drawn += (factors * self.basis_variance.sqrt()) @ self.basis
        return drawn

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "mean": self.mean,
            "variance": self.variance,
            "basis": self.basis,
            "basis_variance": self.basis_variance,
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the prior as tensors and JSON values."""
        return self._tensors(), {"kind": self.kind}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Prior:
        """Return the prior that :meth:`state` described; ValueError where it is none."""
        return cls(kind=str(meta["kind"]), **tensors)

    @property
    def version(self) -> str:
        """SHA-256 (hex) of the state."""
        return state_digest(*self.state())


def prior_from_releases(
    statistics: Statistics,
    releases: Tensor,
    *,
    noise_multiplier: float = 0.0,
    divisor: float = 1.0,
    rank: int = 8,
) -> Prior:
    """Return the prior of released statistics, one row for each client.

    Noise makes estimates of small second moments useless, and its size is known: they are shrunk
    towards their block's mean as far as the noise explains their spread (James and Stein 1961), and
    directions are kept only where they stand out of the noise (:func:`leading_directions`). Where nothing
    is left, the prior is flat, with the energy of a record at the clipping norm.

    Args:
        releases: [clients, statistics.size], as :meth:`Statistics.release` gave them.
        noise_multiplier, divisor: as given to :meth:`Statistics.release`. The prior is that of a mean
            of ``divisor`` records: what varies between them is divided by it.
        rank: ``low-rank``: directions at most.

    Raises:
        ValueError: no release, another shape, or values that are not finite.
    """
    if releases.dim() != 2 or not len(releases) or releases.shape[1] != statistics.size:
        raise ValueError(
            f"Expected releases of shape (clients, {statistics.size}), got {tuple(releases.shape)}"
        )
    if not bool(torch.isfinite(releases).all()):
        raise ValueError("Expected finite releases, got NaN or infinite values")
    layout, kind = statistics.layout, statistics.kind
    std = noise_multiplier / divisor
    mean_release = releases.double().mean(0)
    # Averaging n releases divides the noise's standard deviation by sqrt(n); unscaling multiplies it.
    first, seconds = statistics.unscale(mean_release)
    noise_of_mean = std / math.sqrt(len(releases)) * statistics.second_weight * statistics.clip**2
    mean = torch.zeros(layout.dimension, dtype=torch.float64)
    basis, basis_variance = torch.zeros(0, layout.dimension), torch.zeros(0)
    if kind == "layerwise":
        sizes = torch.tensor([float(block.size) for block in layout.blocks], dtype=torch.float64)
        mean = (first / sizes.sqrt())[layout.block_of]
        variance = (seconds[0] / sizes)[layout.block_of] - mean.square()
    elif kind == "factored":
        variance = _independent_within_heads(statistics, seconds, noise_of_mean)
    else:
        variance = _shrunk(seconds[0], layout.block_of, noise_of_mean)
        if kind == "low-rank":
            rows = statistics.first_moments(releases)
            noise = std * statistics.first_weight * statistics.clip
            basis, basis_variance = leading_directions(rows, rank, noise)
            # Second moments include the directions' energy: count it once.
            if divisor == 1:
                variance = variance - basis_variance.double() @ basis.double().square()
    if kind == "layerwise":  # noise can make the mean's square larger than the second moment
        second = (variance + mean.square()).clamp(min=0)
        mean = mean.sign() * torch.minimum(mean.abs(), second.sqrt())
        variance = second - mean.square()
    variance = variance.clamp(min=0)
    if not (variance.any() or mean.any() or basis_variance.any()):
        # Noise hid everything. A flat prior favours nothing, where a zero one would expect nothing.
        variance = torch.full_like(variance, statistics.clip**2 / layout.dimension)
    return Prior(
        kind=kind,
        mean=mean.float(),
        variance=(variance / divisor).float(),
        basis=basis.float(),
        basis_variance=basis_variance.float(),
    )


def prior_from_gradients(kind: Kind, layout: Layout, gradients: Tensor, *, rank: int = 8) -> Prior:
    """Return the prior of gradients [n, d] as they are, without noise.

    Free for gradients of public text. Gradients of private data have no guarantee this way.

    Raises:
        ValueError: another shape, values that are not finite, or nothing but zeros.
    """
    if gradients.dim() != 2 or gradients.shape[1] != layout.dimension or not len(gradients):
        raise ValueError(
            f"Expected gradients of shape (n, {layout.dimension}), got {tuple(gradients.shape)}"
        )
    longest = float(gradients.double().norm(dim=1).max())
    if not (math.isfinite(longest) and longest > 0):
        raise ValueError(f"Expected finite gradients that are not all zero, got norm {longest}")
    statistics = Statistics(kind, layout, clip=longest * (1 + 2**-20))
    rows = torch.stack([statistics.of(row) for row in gradients])
    return prior_from_releases(statistics, rows, rank=rank)


def chance_of_noise(
    releases: Tensor, *, noise_multiplier: float, divisor: float = 1.0
) -> float | None:
    """Return the probability that noise alone gives statistics as large as these: near 0 where they tell something.

    The mean of the releases [n, size] is then Gaussian of a known size, and its square norm chi-square.
    Post-processing of what was released.

    Args:
        noise_multiplier, divisor: as in :func:`prior_from_releases`; divisors that differ by their
            root mean inverse square.

    Returns:
        In [0, 1]; None without noise.
    """
    if noise_multiplier == 0:
        return None
    variance = (noise_multiplier / divisor) ** 2 / len(releases)
    energy = float(releases.double().mean(0).square().sum())
    return float(chi2.sf(energy / variance, releases.shape[1]))


def leading_directions(rows: Tensor, rank: int, noise: float) -> tuple[Tensor, Tensor]:
    """Return orthonormal directions [r, d] of noisy rows [n, d], and the signal's energy in each, [r].

    r <= min(rank, n/2) (more would fit the rows and leave no residual): directions
    whose energy lies above what noise of this standard deviation alone would
    give (the edge of the Marchenko-Pastur law), with the energy corrected for the noise in it
    (the spiked model, Baik and Silverstein 2006: observed = (l + s^2)(1 + c s^2 / l), c = d/n).
    """
    n, d = rows.shape
    rows = rows.double()
    # The n x n Gram matrix has the nonzero eigenvalues of the d x d covariance, and n is much smaller.
    values, left = torch.linalg.eigh(rows @ rows.T / n)
    order = torch.arange(n - 1, -1, -1)[: min(rank, n // 2)]
    values, left = values[order].clamp(min=0), left[:, order]
    power, aspect = noise**2, d / n
    edge = power * (1 + math.sqrt(aspect)) ** 2
    kept = values > max(edge, float(values[0]) * 1e-12 if len(values) else 0.0)
    vectors = (left[:, kept].T @ rows) / (values[kept] * n).sqrt()[:, None]
    # Solve observed = (l + s^2)(1 + c s^2 / l) for l, the larger root: a quadratic in l.
    middle = values[kept] - power * (1 + aspect)
    signal = (middle + (middle.square() - 4 * aspect * power**2).clamp(min=0).sqrt()) / 2
    return vectors.float(), signal.float()


def _shrunk(moments: Tensor, block_of: Tensor, noise: float) -> Tensor:
    """Return the sums of squares, >= 0, drawn towards their block's mean as far as the noise asks for it.

    Args:
        moments: float64 [n]; block_of: number of the block of each, int64 [n].
        noise: standard deviation of the noise in each.
    """
    result = torch.empty_like(moments)
    for number in range(int(block_of.max()) + 1):
        inside = block_of == number
        part = moments[inside]
        centre = part.mean().clamp(min=0)
        spread = float(part.var(unbiased=False))
        # James and Stein 1961: of the observed spread, noise^2 is the noise's; keep the other share.
        kept = max(0.0, 1 - noise**2 / spread) if spread > 0 else 0.0
        result[inside] = (centre + kept * (part - centre)).clamp(min=0)
    return result


def _independent_within_heads(
    statistics: Statistics, seconds: list[Tensor], noise: float
) -> Tensor:
    """Return v[h, p, j] = (sum over j)[h, p] * (sum over p)[h, j] / (sum over both)[h] in each block.

    The maximum-entropy table with these two marginals. The energies by head are both marginals' mean.
    """
    layout = statistics.layout
    head, heads = layout.partition((0,))
    cell, cells = layout.partition((0, 1, 2))
    product = torch.ones(layout.dimension, dtype=torch.float64)
    energy = torch.zeros(heads, dtype=torch.float64)
    for (group, count), sums in zip(statistics.partitions, seconds, strict=True):
        block_of = torch.zeros(count, dtype=torch.int64).scatter(0, group, layout.block_of)
        head_of = torch.zeros(count, dtype=torch.int64).scatter(0, group, head)
        sums = _shrunk(sums, block_of, noise)
        total = torch.zeros(heads, dtype=torch.float64).index_add_(0, head_of, sums)
        energy += total / len(seconds)
        product *= (sums / total.clamp(min=1e-300)[head_of])[group]
    members = torch.bincount(cell, minlength=cells).double()  # 1, but in blocks of more than 3 axes
    return energy[head] * product / members[cell]
