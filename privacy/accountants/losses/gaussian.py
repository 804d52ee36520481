"""Privacy loss distributions of one (Poisson-sampled) Gaussian and of one discrete Gaussian.

"Connect the dots" (Doroshenko et al. 2022, arXiv 2207.04380): the mass of both members of the
dominating pair (P, Q) between two neighbouring multiples of an interval is put on these two so that
both masses are kept. Delta is then exact at each multiple, and linear in exp(epsilon), so above the
truth, between them. dp_accounting does the same one epsilon at a time, which is nearly all the
time that an accountant takes, and from differences of deltas, which lose digits; here it is done
cell by cell, with the masses' logarithms.

The pairs, in units of the sensitivity, s the noise multiplier and q the sampling rate:

* zero-out and add-or-remove-one (Zhu, Dong and Wang 2022, arXiv 2106.08567, theorem 11, both directions):
  (1-q) N(0, s^2) + q N(1, s^2) and N(0, s^2);
  (A null record, sampled or not, adds the zero vector: the sum is that of the data without it, in every
  outcome of the sampling, so both relations have this pair; `privacy.guarantee`.)
* replace-one: (1-q) N(0, s^2) + q N(1, s^2) and (1-q) N(0, s^2) + q N(-1, s^2).

Proof of the second. Let the replaced record contribute u in one data set and v in the other, |u|,
|v| <= 1, in any dimension. The other records, sampled independently of it, shift both outputs by the
same random vector; the hockey-stick divergence is jointly convex, so it is at most that of the worst
fixed shift, and does not change with a shift. What is left is (1-q) N_0 + q N_u against
(1-q) N_0 + q N_v. For a set A with a = N_0(A), Neyman and Pearson give N_u(A) <= Phi(Phi^-1(a) +
1/s) and N_v(A) >= Phi(Phi^-1(a) - 1/s). So P(A) - e^eps Q(A) is at most its value for u = 1, v = -1
and the half-line of the same a, which is at most the divergence of that pair. A dominating pair of
each step gives one of the adaptive composition (the same paper, theorem 10).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr

from privacy.accountants.losses.distribution import LossDistribution

Array = npt.NDArray[np.float64]
REACH = 10.0  # standard deviations; the mass beyond, below 1e-23, has an infinite loss
_LOWEST = -60.0  # replace-one: P has less than exp(-60) below, which is put there
_ROUND_OFF = 1e-15  # share of a cell's mass that is moved up on account of round-off
LARGEST_DISCRETE_SIGMA = 2e5


def largest_loss(noise: float, rate: float, replace: bool) -> float:
    """Return the largest finite loss of `gaussian_losses`, in either direction."""
    edge = np.array([1 + REACH * noise])
    return float(loss_at(edge, noise, rate, replace)[0])


def gaussian_losses(
    noise: float, rate: float, replace: bool, interval: float
) -> tuple[LossDistribution, ...]:
    """Return the loss distributions of a Poisson-sampled Gaussian, pessimistic.

    Args:
      noise: Noise multiplier, > 0.
      rate: Sampling rate, 0 < rate <= 1.
      replace: Replace-one; else zero-out or add-or-remove-one.
      interval: Distance between two losses.

    Returns:
      One distribution where the two directions are the same, else (remove, add).
    """
    top = largest_loss(noise, rate, replace)
    if replace or rate == 1:
        bottom = max(-top, _LOWEST) if replace else _lowest(noise, rate)
        return (_discretised(noise, rate, replace, interval, bottom, top),)
    lowest = _lowest(noise, rate)
    remove = _discretised(noise, rate, False, interval, lowest, top)
    return remove, _discretised_add(noise, rate, interval, lowest)


def _lowest(noise: float, rate: float) -> float:
    """Return the loss, direction remove, below which N(0, s^2) has less than 1e-23."""
    return float(loss_at(np.array([-REACH * noise]), noise, rate, False)[0])


def loss_at(x: Array, noise: float, rate: float, replace: bool = False) -> Array:
    """Return ln(P/Q) at output x, direction remove; rises with x."""
    scale = 2 * noise**2
    q = math.log(rate)
    rest = math.log1p(-rate) if rate < 1 else -math.inf
    upper = np.logaddexp(rest, q + (2 * x - 1) / scale)
    lower = np.logaddexp(rest, q - (2 * x + 1) / scale) if replace else 0.0
    return np.asarray(upper - lower)


def output_at(losses: Array, noise: float, rate: float, replace: bool = False) -> Array:
    """Return the output x at which ln(P/Q), direction remove, is each loss; -inf where it is always more.

    Replace-one: with y = exp(x/s^2) and c = exp(-1/(2 s^2)), e^eps ((1-q) + q c/y) = (1-q) + q c y
    is a quadratic in y; its root is ln y = eps/2 + asinh((1-q) sinh(eps/2) / (q c)).
    """
    variance = noise**2
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if replace:
            half = losses / 2
            if rate == 1:
                return np.asarray(variance * half)
            size = np.abs(half)
            log_sinh = np.where(size > 1, size + np.log1p(-np.exp(-2 * size)) - math.log(2), 0.0)
            log_sinh = np.where(size > 1, log_sinh, np.log(np.sinh(np.minimum(size, 1.0))))
            z = math.log1p(-rate) - math.log(rate) + 1 / (2 * variance) + log_sinh
            large = np.maximum(z, 0) + np.log1p(np.sqrt(1 + np.exp(-2 * np.maximum(z, 0))))
            asinh = np.where(z > 0, large, np.arcsinh(np.exp(np.minimum(z, 0.0))))
            return np.asarray(variance * (half + np.sign(losses) * asinh))
        # exp((2x - 1) / (2 s^2)) = 1 + (exp(loss) - 1) / q
        small = np.log1p(np.maximum(np.expm1(np.minimum(losses, 30.0)) / rate, -1.0))
        large = losses - math.log(rate) + np.log1p(-(1 - rate) * np.exp(-np.abs(losses)))
        return np.asarray(0.5 + variance * np.where(losses > 30.0, large, small))


def log_masses(edges: Array, shift: float, noise: float) -> Array:
    """Return log of the mass of N(shift, s^2) between neighbouring edges, ascending."""
    z = (edges - shift) / noise
    low, high = z[:-1], z[1:]
    right = low > 0  # by symmetry, on the side where the mass is small
    lower, upper = np.where(right, -high, low), np.where(right, -low, high)
    top = log_ndtr(upper)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = top + np.log(-np.expm1(log_ndtr(lower) - top))
    return np.where(np.isnan(found), -np.inf, found)


def times(log_mass: Array, epsilon: Array, offset: float) -> Array:
    """Return (exp(epsilon) - 1 + offset) * mass, without overflow or cancellation."""
    mass = np.exp(log_mass)
    with np.errstate(over="ignore"):
        small = (np.expm1(np.minimum(epsilon, 30.0)) + offset) * mass
        large = np.exp(np.minimum(epsilon + log_mass, 0.0)) - (1 - offset) * mass
    return np.where(epsilon > 30.0, large, small)


def _discretised(
    noise: float, rate: float, replace: bool, interval: float, bottom: float, top: float
) -> LossDistribution:
    """Discretise the loss in direction remove: P is (1-q) N_0 + q N_1."""
    first, last = math.floor(bottom / interval), math.ceil(top / interval)
    grid: Array = np.arange(first, last + 1, dtype=np.float64) * interval
    edges = output_at(grid, noise, rate, replace)
    zero, one = log_masses(edges, 0.0, noise), log_masses(edges, 1.0, noise)
    epsilon = grid[:-1]
    mass = (1 - rate) * np.exp(zero) + rate * np.exp(one)
    # gap = P(cell) - exp(epsilon) Q(cell)
    if replace:
        other = np.exp(np.minimum(epsilon + log_masses(edges, -1.0, noise), 0.0))
        gap = rate * (np.exp(one) - other) - (1 - rate) * times(zero, epsilon, 0.0)
    else:
        gap = rate * np.exp(one) - times(zero, epsilon, rate)
    beyond = ndtr(-(edges[-1] - 1) / noise)  # N_1 has the most mass there
    below = (1 - rate) * ndtr(edges[0] / noise) + rate * ndtr((edges[0] - 1) / noise)
    return connected(interval, first, mass, gap, float(below), float(beyond))


def _discretised_add(noise: float, rate: float, interval: float, lowest: float) -> LossDistribution:
    """Discretise the loss in direction add: P is N_0, Q the mixture; the loss is minus the other one, and bounded."""
    top = -lowest
    bottom = -float(loss_at(np.array([REACH * noise]), noise, rate, False)[0])
    first, last = math.floor(bottom / interval), math.ceil(top / interval)
    last = max(last, first + 1)
    grid: Array = np.arange(first, last + 1, dtype=np.float64) * interval
    edges = output_at(-grid[::-1], noise, rate, False)  # ascending in x, descending in the loss
    zero = log_masses(edges, 0.0, noise)[::-1]
    one = log_masses(edges, 1.0, noise)[::-1]
    epsilon = grid[:-1]
    mass = np.exp(zero)
    gap = -mass * np.expm1(epsilon + math.log1p(-rate)) - rate * np.exp(epsilon + one)
    below, beyond = ndtr(-edges[-1] / noise), ndtr(edges[0] / noise)
    return connected(interval, first, mass, gap, float(below), float(beyond))


def connected(
    interval: float, first: int, mass: Array, gap: Array, below: float, beyond: float
) -> LossDistribution:
    """Put each cell's mass on its two ends; `below` and `beyond` all cells, on the next loss."""
    upper = np.clip((gap + _ROUND_OFF * mass) / -math.expm1(-interval), 0.0, mass)
    probs = np.append(mass - upper, 0.0)
    probs[1:] += upper
    probs[0] += below
    return LossDistribution(interval=interval, start=first, probs=probs, infinity=beyond, error=0.0)


def discrete_gaussian_losses(sigma: float, shift: int, interval: float) -> LossDistribution:
    """Return the loss distribution of the discrete Gaussian against its shift, pessimistic.

    The pair is P = N_Z(0, sigma^2) and Q = N_Z(shift, sigma^2) on the integers (Canonne, Kamath and
    Steinke 2020); its loss at x is shift (shift - 2x) / (2 sigma^2), an atom for each integer. By
    symmetry the other direction is the same.

    Args:
      sigma: The parameter, 0 < sigma <= 2e5 (an atom for each integer within 12 sigma is made).
      shift: The change of the number between neighbouring data sets, a whole number >= 1.
      interval: Distance between two losses.
    """
    reach = math.ceil(12 * sigma) + 1
    x = np.arange(reach, -reach - 1, -1, dtype=np.float64)  # the loss ascends
    weights = np.exp(-((x / sigma) ** 2) / 2)
    masses = weights / math.fsum(weights)
    losses = shift * (shift - 2 * x) / (2 * sigma**2)
    below = np.floor(losses / interval)
    over = losses - below * interval
    upper = masses * np.clip((-np.expm1(-over) + _ROUND_OFF) / -math.expm1(-interval), 0.0, 1.0)
    first = int(below[0])
    index = (below - first).astype(np.int64)
    size = int(index[-1]) + 2
    probs: Array = np.bincount(index, masses - upper, size).astype(np.float64)
    probs += np.bincount(index + 1, upper, size)
    # Less than 1e-30 of the mass is beyond 12 sigma (sub-Gaussian, the same paper, corollary 9).
    return LossDistribution(interval=interval, start=first, probs=probs, infinity=1e-30, error=0.0)
