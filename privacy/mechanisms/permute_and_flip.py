"""Permute-and-flip: choose the best of a few candidates under pure DP, without floating point.

Permute-and-flip (McKenna and Sheldon 2020, arXiv 2010.12603, algorithm 1): candidates come in random
order, each is taken with probability exp(-eps (max u - u_r) / (2 D)), the first that is taken is the
choice. It is never worse than the exponential mechanism or report-noisy-max at the same epsilon.

Guarantee: eps-differential privacy, where neighbouring data change each utility u_r by at most D.
Proof. With p_s = exp(-eps (max u - u_s) / (2 D)) the choice is r with probability

    P[r] = p_r * integral from 0 to 1 of prod_{s != r} (1 - x p_s) dx

(the order is that of independent uniform times x; s comes before r, at a time below x, and is taken, with
probability x p_s). Only differences of utilities count, and P[r] falls as another u_s rises: where s is
not the largest, p_s alone rises; where it is, with every other p multiplied by t = exp(-eps c / (2 D)),
P[r] = p_r * integral from 0 to t of (1 - y / t) prod (1 - y p) dy (y = x t), which falls with t. So of all
neighbours P[r] is least, relative to u, where u_r falls by D and all others rise by D: where u_r falls by
2 D against them. Let u_r rise by c instead. Where r is not the largest, P[r] grows by exp(eps c / (2 D)),
through p_r alone. Where it is, p_r = 1 and all others are multiplied by t:
P'[r] = (1 / t) * integral from 0 to t of prod (1 - y p_s) dy <= P[r] / t, the integrand being positive.
Both together for c = 2 D: P[r] changes by a factor of at most exp(eps).

Several choices one after the other (each among those that are left) compose: k of eps / k are eps.

Utilities are whole numbers and epsilon is the fraction that a float stands for; every random choice is a
comparison of a uniform integer with an integer, as in :mod:`privacy.mechanisms.discrete_gaussian`. So the guarantee is
one about what is really computed. The time that a choice takes depends on the utilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from privacy.mechanisms.discrete_gaussian import bernoulli_exp, uniform_below
from privacy.randomness import RandomSource


def permute_and_flip(
    utilities: Sequence[int], sensitivity: int, epsilon: float | Fraction, rng: RandomSource
) -> int:
    """Choose one candidate: the larger its utility, the likelier.

    Args:
      utilities: A whole number for each candidate, at least one; private.
      sensitivity: The most by which neighbouring data change any one utility; whole, >= 1.
      epsilon: Of the choice; finite and > 0. Its event is `pure_dp(epsilon)`.
      rng: Where uniform bytes come from.

    Returns:
      The place of the chosen candidate.

    Raises:
      ValueError: No candidate, a utility that is no whole number, or an argument out of range.
    """
    exact = _checked(utilities, sensitivity, epsilon)
    best = max(utilities)
    left = list(range(len(utilities)))
    while True:  # the best one is taken for sure
        place = left.pop(uniform_below(len(left), rng))
        distance = exact * (best - int(utilities[place])) / (2 * sensitivity)
        if bernoulli_exp(distance, rng):
            return place


def noisy_top(
    utilities: Sequence[int],
    count: int,
    sensitivity: int,
    epsilon: float | Fraction,
    rng: RandomSource,
) -> list[int]:
    """Choose several candidates by as few noisy choices as it takes, of which epsilon is the sum.

    The best ones are taken one by one, or, where that is fewer, the worst ones are left out one by one.

    Args:
      utilities, sensitivity, rng: As for `permute_and_flip`.
      count: How many, from 0 to the number of candidates.
      epsilon: Of all choices together; finite and > 0. Their event is `pure_dp(epsilon)`.

    Returns:
      The places of the chosen candidates, ascending.

    Raises:
      ValueError: As for `permute_and_flip`, or a count out of range.
    """
    exact = _checked(utilities, sensitivity, epsilon)
    if isinstance(count, bool) or count != int(count) or not 0 <= count <= len(utilities):
        raise ValueError(f"Expected a count from 0 to {len(utilities)}, got count={count}")
    keep = count <= len(utilities) - count
    picks = count if keep else len(utilities) - count
    signed = [int(value) if keep else -int(value) for value in utilities]
    left = list(range(len(signed)))
    picked = [
        left.pop(permute_and_flip([signed[i] for i in left], sensitivity, exact / picks, rng))
        for _ in range(picks)
    ]
    return sorted(picked if keep else left)


def amplified(epsilon: float, rate: float) -> float:
    """Return the epsilon of a choice on a Poisson sample that costs `epsilon` in all: log(1 + (e^eps - 1) / rate).

    Guarantee: a mechanism that is eps'-DP under zero-out or add-or-remove-one is log(1 + rate (e^eps' - 1))-DP on a
    Poisson sample. Proof: with the record in the data the output has the distribution (1 - rate) P +
    rate Q, without it P, where e^-eps' P <= Q <= e^eps' P. The ratio is at most 1 + rate (e^eps' - 1), and
    its inverse at most 1 / (1 - rate + rate e^-eps'), which is no more (Cauchy-Schwarz). Rounded down.

    Raises:
      ValueError: epsilon is not finite and > 0, or rate is no probability > 0.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"Expected a finite epsilon > 0, got epsilon={epsilon}")
    if not 0 < rate <= 1:
        raise ValueError(f"Expected 0 < rate <= 1, got rate={rate}")
    if rate == 1:
        return epsilon
    if epsilon > 700:
        return epsilon  # e^eps overflows; less than what it could be
    return math.log1p(math.expm1(epsilon) / rate) * (1 - 2.0**-40)


def _checked(utilities: Sequence[int], sensitivity: int, epsilon: float | Fraction) -> Fraction:
    if not len(utilities):
        raise ValueError("Expected at least one candidate, got none")
    if any(isinstance(u, bool) or not isinstance(u, int | np.integer) for u in utilities):
        raise ValueError(f"Expected utilities that are whole numbers, got {list(utilities)}")
    if isinstance(sensitivity, bool) or sensitivity != int(sensitivity) or sensitivity < 1:
        raise ValueError(f"Expected a whole sensitivity >= 1, got sensitivity={sensitivity}")
    if isinstance(epsilon, bool) or not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"Expected a finite epsilon > 0, got epsilon={epsilon}")
    return Fraction(epsilon)
