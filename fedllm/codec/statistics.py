"""Statistics of gradients that a client releases before training, under differential privacy.

**The statistic of one vector.** Let a = g/C with ||a|| <= 1 after clipping g to C, cut into blocks
a_l of size d_l. A *partition* sums the squares of a over groups of coordinates. The parts are

* x, a projection of a: ||x(a) - x(b)|| <= ||a - b||, in the same direction for the block means
  x_l = sqrt(d_l) mean(a_l) = <a_l, 1>/sqrt(d_l) (``layerwise``), or a itself (``low-rank``);
* y_j = sum of a_i^2 over group j, for each of m partitions.

``layerwise`` releases x and the blocks' energies; ``low-rank`` releases x = a and all squares;
``coordinate`` all squares; ``factored`` two partitions: by (head, position) and by (head, head
dimension) within each block. The statistic is f(a) = (x / w_x, y / w_y) with the weights

    x and one partition:  w_x = sqrt(3/2), w_y = sqrt(3);      m partitions alone:  w_y = sqrt(m).

**Unit client** (the one record is the client's clipped update).

*Zero-out (the client's vector against f = 0): ||f(a)|| <= 1.* ||x|| <= 1, and as y >= 0 has L1 norm
||a||^2 <= 1, ||y||_2 <= 1 for each partition. So ||f||^2 <= 1/(3/2) + 1/3 = 1, and m/m = 1.

*Replace-one, partitions alone: ||f(a) - f(b)|| <= sqrt(2).* All entries are >= 0, so
||y(a) - y(b)||^2 <= ||y(a)||^2 + ||y(b)||^2 <= 2 for each partition.

*Replace-one, x and y: ||f(a) - f(b)|| <= 2/sqrt(3/2) = 1.633.* This says that
D = ||x(a) - x(b)||^2 + 1/2 ||y(a) - y(b)||^2 <= 4: the squares come free. Proof. Write p_l = ||a_l||,
q_l = ||b_l|| over the groups of the partition. Then D <= sum_l S_l^2 (1 + D_l^2 / 2) with
S_l = p_l + q_l and D_l = p_l - q_l, as ||a_l - b_l|| <= S_l and y_l(a) - y_l(b) = S_l D_l. Adding
groups (p, 0) and (0, q) does not lessen this, so let sum p^2 = sum q^2 = 1, hence
sum S^2 + sum D^2 = 4. If all S_l^2 <= 2: the sum is 4 - sum D_l^2 (1 - S_l^2/2) <= 4. Otherwise let
p_1 = cos s, q_1 = cos t with S_1^2 > 2, and for the rest A = sin s, B = sin t be the norms of p and q.
With h = (s+t)/2, e = (s-t)/2: S_1 = 2 cos h cos e > sqrt(2), so cos h > 1/sqrt(2) and
A + B = 2 sin h cos e < sqrt(2). In the rest S_l <= A + B, so its share is at most
sum S^2 + (A+B)^2/2 sum D^2, where sum S^2 + sum D^2 = 2(A^2+B^2) and the factor of sum D^2 is below 1;
it is largest where sum S^2 is, at (A+B)^2 (Cauchy-Schwarz), sum D^2 = (A-B)^2. Together
D <= 4 cos^2 h cos^2 e (1 + 2 sin^2 h sin^2 e) + 4 sin^2 h cos^2 e (1 + 2 cos^2 h sin^2 e)
= 4 cos^2 e (1 + sin^2(2h) sin^2 e) <= 4 (1 - sin^4 e) <= 4.

With noise s on x and sqrt(2) s on y that is mu = 2/s (replace-one) and sqrt(1.5)/s = 1.225/s
(zero-out).

**Unit example** (records are a client's examples, each with its own clipped gradient). The statistic is
sum_i f(a_i) / B with a public divisor B, whatever the number of examples. Adding or removing an example
moves the sum by one f(a), and replacing it by f(a) - f(b): the client's bounds, over B. The second
moments are those of single examples. They are about B times as large as those of the mean of B
gradients, and so rise as much further out of the noise; the prior divides by B what is independent
between examples (:func:`fedllm.codec.prior.prior_from_releases`). Squares of the mean itself would
move by 2/B (Cauchy-Schwarz): twice the noise for a smaller number.

All bounds are
in real arithmetic; the statistic is computed in float64 of vectors that were clipped with a margin of
2^-22.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.codec.layout import Layout
from privacy.events import constructors as events
from privacy.guarantee import Relation
from privacy.mechanisms.clipping import clip_vector
from privacy.mechanisms.gaussian import add_gaussian
from privacy.randomness import RandomSource

Kind = Literal["layerwise", "factored", "coordinate", "low-rank"]
_JOINT = ("layerwise", "low-rank")  # kinds with first moments
_FACTORS = ((0, 1), (0, 2))  # axes of a block: (head, position); (head, head dimension)


@dataclass(frozen=True)
class Statistics:
    """The statistic of one kind of prior for one layout; the module has the proofs.

    Attributes:
        kind: of the prior.
        layout: of the vectors.
        clip: C > 0, the L2 norm to which vectors are clipped.

    Raises:
        ValueError: an unknown kind, or a clip that is not finite and > 0.
    """

    kind: Kind
    layout: Layout
    clip: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"Expected a prior of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise ValueError(f"Expected a finite clip > 0, got clip={self.clip}")

    @cached_property
    def partitions(self) -> tuple[tuple[Tensor, int], ...]:
        """Each partition as the group of each coordinate, int64 [d], and the number of groups."""
        d = self.layout.dimension
        if self.kind == "layerwise":
            return ((self.layout.block_of, len(self.layout.blocks)),)
        if self.kind == "factored":
            return tuple(self.layout.partition(axes) for axes in _FACTORS)
        return ((torch.arange(d), d),)

    @property
    def first_weight(self) -> float:
        """w_x."""
        return math.sqrt(1.5)

    @property
    def second_weight(self) -> float:
        """w_y."""
        return math.sqrt(3.0) if self.kind in _JOINT else math.sqrt(len(self.partitions))

    @property
    def first_size(self) -> int:
        """Number of entries of x."""
        if self.kind == "layerwise":
            return len(self.layout.blocks)
        return self.layout.dimension if self.kind == "low-rank" else 0

    @property
    def size(self) -> int:
        """Number of entries of the statistic."""
        return self.first_size + sum(count for _, count in self.partitions)

    def of(self, vector: Tensor) -> Tensor:
        """Return f(clip(vector) / C), float64 [size]: norm at most 1. Private until :meth:`release`.

        A vector [d] with an entry that is not finite counts as zero.

        Raises:
            ValueError: another shape.
        """
        if tuple(vector.shape) != (self.layout.dimension,):
            raise ValueError(
                f"Expected a vector of shape ({self.layout.dimension},), got {tuple(vector.shape)}"
            )
        scaled = clip_vector(vector.cpu(), self.clip)[0].double() / self.clip
        return self.of_sums(scaled, scaled.square())

    def total(self, vectors: Tensor) -> Tensor:
        """Return the sum of :meth:`of` over the rows of [n, d]; add up micro-batches, then :meth:`release`."""
        sums = torch.zeros(2, self.layout.dimension, dtype=torch.float64)
        for vector in vectors:
            scaled = clip_vector(vector.cpu(), self.clip)[0].double() / self.clip
            sums[0] += scaled
            sums[1] += scaled.square()
        return self.of_sums(sums[0], sums[1])

    def of_sums(self, first: Tensor, squares: Tensor) -> Tensor:
        """Return the sum of f over records from sums of a and of a * a, [d] each: f is linear in them.

        The caller has clipped each record: ||a|| <= 1.
        """
        parts = []
        if self.kind == "layerwise":
            sizes = torch.tensor([float(block.size) for block in self.layout.blocks])
            sums = torch.zeros(len(sizes), dtype=torch.float64)
            sums.index_add_(0, self.layout.block_of, first.double())
            parts.append(sums / sizes.double().sqrt() / self.first_weight)
        elif self.kind == "low-rank":
            parts.append(first.double() / self.first_weight)
        for group, count in self.partitions:
            sums = torch.zeros(count, dtype=torch.float64).index_add_(0, group, squares.double())
            parts.append(sums / self.second_weight)
        return torch.cat(parts)

    def sensitivity(self, relation: Relation = Relation.ZERO_OUT) -> float:
        """Return proven bound of the L2 change of the sum of f over records that differ in one.

        Zero-out and add-or-remove-one: a record against f = 0.
        """
        if not relation.doubles:
            return 1.0
        return 2 / math.sqrt(1.5) if self.kind in _JOINT else math.sqrt(2.0)

    def release(
        self, total: Tensor, noise_multiplier: float, rng: RandomSource, *, divisor: float = 1.0
    ) -> Tensor:
        """Return the noisy statistic, float64 [size]; its event is :meth:`event`.

        Noise has the standard deviation ``noise_multiplier / divisor`` in every entry.

        Args:
            total: from :meth:`of` (unit client), or from :meth:`total` (unit example).
            divisor: B > 0, public; the expected number of examples at unit example.

        Raises:
            ValueError: another shape, or a number out of range.
        """
        if tuple(total.shape) != (self.size,):
            raise ValueError(
                f"Expected a statistic of shape ({self.size},), got {tuple(total.shape)}"
            )
        if not (math.isfinite(divisor) and divisor > 0):
            raise ValueError(f"Expected a finite divisor > 0, got divisor={divisor}")
        return add_gaussian(total.double(), self.sensitivity(), noise_multiplier, rng) / divisor

    def mu(self, noise_multiplier: float, relation: Relation = Relation.ZERO_OUT) -> float:
        """Return the exact Gaussian-DP parameter of one :meth:`release`, without sampling."""
        return self.sensitivity(relation) / noise_multiplier

    def event(self, noise_multiplier: float) -> DpEvent:
        """Return the ledger's event of one :meth:`release`, valid under each relation.

        Under zero-out and add-or-remove-one it is exact. Accountants double the sensitivity under replace-one,
        where this statistic's is at most 1.633 times (x and y) or 1.414 times (y alone): the bound is
        valid and not tight; :meth:`mu` is.
        """
        return events.gaussian(noise_multiplier)

    def unscale(self, release: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the first moments x C and the partitions' sums of squares y C^2, in the gradient's units."""
        first = self.first_moments(release[None])[0]
        counts = [count for _, count in self.partitions]
        seconds = release[self.first_size :].double() * self.second_weight * self.clip**2
        return first, list(seconds.split(counts))

    def first_moments(self, releases: Tensor) -> Tensor:
        """Return x C of each release [n, size]: [n, first_size], float64."""
        return releases[:, : self.first_size].double() * self.first_weight * self.clip
