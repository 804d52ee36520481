"""Loss distributions of one Gaussian on a truncated Poisson sample.

The mechanism: each of n records is drawn with probability q; where more than B are drawn, B of them are kept,
uniformly at random; their vectors, of norm at most 1, are summed and Gaussian noise of s is added
(dp_accounting's TruncatedSubsampledGaussianDpEvent; arXiv 2508.15089).

Zero-out: x is replaced by the null record, which is drawn, takes its place among the B, and adds zero. The
kept set S has the same distribution on both sides. Let R = S without x. Given R, the two outputs are

    (1 - p) N(sum of R, s^2) + p N(sum of R + x, s^2)   and   N(sum of R, s^2),     p = P(x in S | R),

and by symmetry p depends on |R| alone:

* |R| <= B - 2: nothing was cut, x is in S by its own draw: p = q.
* |R| = B - 1: P(x in S, |S| = B) = (B/n) P(K >= B) =: a with K ~ Bin(n, q), since S is then a uniform set of B;
  P(x not in S, |S| = B - 1) = (1 - q) P(K' = B - 1) =: b with K' ~ Bin(n - 1, q). So p = a / (a + b).
* |R| = B: x is not in S. The outputs are the same: the loss is 0.

The hockey-stick divergence is jointly convex, so in each direction it is at most the mean over |R| of those of
the scalar pairs (1-p) N(0, s^2) + p N(1, s^2) and N(0, s^2) of `losses.gaussian`: it is that of the pair that also tells
which of the three it was, whose loss distribution is the mixture of theirs. This pair dominates a step whatever
was released before, and such pairs compose (Zhu, Dong and Wang 2022, arXiv 2106.08567, theorem 10).

No proof for adding or removing a record is used: without x another record may be kept in its place, so that the data
with the null record and the data without x do not give the same distribution. Other relations are not proven here;
dp_accounting's own factory serves them. Several copies of a record have no proof (`privacy.copies` refuses them).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from privacy.accountants.losses.distribution import LossDistribution
from privacy.accountants.losses.gaussian import gaussian_losses


def kept_probabilities(size: int, rate: float, most: int) -> list[tuple[float, float]]:
    """Return (weight, p) of each case in which x may be kept, by the module's names; the rest has a loss of 0.

    Args:
      size: n, the number of records, >= 1.
      rate: q, 0 < q <= 1.
      most: B, >= 1.
    """
    # The module's three cases, by |R|: `few` is P(|R| <= B - 2); `full` and `without` are a and b.
    few = float(stats.binom.cdf(most - 2, size - 1, rate)) if most >= 2 else 0.0
    full = most / size * float(stats.binom.sf(most - 1, size, rate))
    without = (1 - rate) * float(stats.binom.pmf(most - 1, size - 1, rate))
    cases = [(few, rate)]
    if full > 0:
        # Rounded up: a larger p of the same pair costs more.
        cases.append((full + without, min(1.0, full / (full + without) * (1 + 1e-12))))
    return [(weight, p) for weight, p in cases if weight > 0]


def largest_kept(size: int, rate: float, most: int) -> float:
    """Return the largest p of all cases; 0 where x is never kept."""
    return max((p for _, p in kept_probabilities(size, rate, most)), default=0.0)


def truncated_losses(
    size: int, rate: float, most: int, noise: float, interval: float
) -> tuple[LossDistribution, ...]:
    """Return the loss distributions (remove, add) under zero-out, pessimistic.

    Args:
      size, rate, most: As for `kept_probabilities`.
      noise: Noise multiplier s, > 0.
      interval: Distance between two losses.
    """
    cases = kept_probabilities(size, rate, most)
    # |R| = B: x is not kept, both outputs are the same, and the loss is 0 with this probability.
    rest = max(0.0, 1.0 - sum(weight for weight, _ in cases))
    nothing = LossDistribution(interval, 0, np.ones(1), 0.0, 0.0)
    parts = [(weight, gaussian_losses(noise, p, False, interval)) for weight, p in cases]
    return tuple(
        _mixture([(rest, nothing)] + [(w, pair[min(d, len(pair) - 1)]) for w, pair in parts])
        for d in range(2)
    )


def _mixture(parts: Sequence[tuple[float, LossDistribution]]) -> LossDistribution:
    """Return the mixture with these weights, all on the same interval."""
    start = min(part.start for _, part in parts)
    end = max(part.start + part.probs.size for _, part in parts)
    probs = np.zeros(end - start)
    for weight, part in parts:
        first = part.start - start
        probs[first : first + part.probs.size] += weight * part.probs
    return LossDistribution(
        interval=parts[0][1].interval,
        start=start,
        probs=probs,
        infinity=sum(weight * part.infinity for weight, part in parts),
        error=max(part.error for _, part in parts) + 4 * float(np.finfo(np.float64).eps),
    )
