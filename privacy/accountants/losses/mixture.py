"""Privacy loss distributions of a mixture of shifted Gaussians against the Gaussian.

The pair is P = sum_j w_j N(s_j, s^2) and Q = N(0, s^2), shifts s_j >= 0. It is that of a Poisson-sampled
Gaussian whose record is there several times (`privacy.copies` has the proof). The loss ln(P/Q) is the logarithm of a
sum of exponentials that do not fall with the output x, so it rises with x, and the cells of the method
("connect the dots", `losses.gaussian`) are intervals of x. Where a loss is taken, Newton's method says: the loss is
convex in x, so the iteration comes down to the root from its right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, ndtr

from privacy.accountants.losses.distribution import LossDistribution
from privacy.accountants.losses.gaussian import REACH, connected, log_masses, times

Array = npt.NDArray[np.float64]
_BEYOND = 1e-24  # mass of the mixture above the largest finite loss
_KNOTS = 20_000
_NEWTON_STEPS = 60
_SOLVED = 1e-11  # relative error of a loss at an edge; a cell's losses are within it of its ends


class Mixture:
    """A mixture of shifted Gaussians, compared with one Gaussian; shifts of weight 0 are dropped.

    Args:
      noise: Standard deviation, > 0.
      shifts: >= 0, not all 0.
      weights: Of the shifts, >= 0, of sum 1.

    Raises:
      ValueError: An argument is out of range.
    """

    def __init__(self, noise: float, shifts: Sequence[float], weights: Sequence[float]) -> None:
        pairs = [(s, w) for s, w in zip(shifts, weights, strict=True) if w > 0]
        good = all(s >= 0 and math.isfinite(s) for s, _ in pairs) and any(s > 0 for s, _ in pairs)
        if not (good and min(weights) >= 0 and abs(math.fsum(weights) - 1) < 1e-9 and noise > 0):
            raise ValueError(
                "Expected shifts >= 0, not all 0, with weights >= 0 of sum 1, and noise > 0; got "
                f"shifts={list(shifts)}, weights={list(weights)}, noise={noise}"
            )
        self.noise = noise
        self.shifts = np.array([s for s, _ in pairs if s > 0])
        self.weights = np.array([w for s, w in pairs if s > 0])
        self.moved = math.fsum(self.weights)  # the mass that is shifted at all
        self._logs = np.log([*self.weights, *([1 - self.moved] if self.moved < 1 else [])])
        self._all = np.array([*self.shifts, *([0.0] if self.moved < 1 else [])])

    def loss(self, x: Array) -> Array:
        """Return ln(P/Q) at outputs [n]."""
        return np.asarray(logsumexp(self._terms(x), axis=0))

    def _terms(self, x: Array) -> Array:
        shift = self._all[:, None]
        return np.asarray(self._logs[:, None] + (2 * x - shift) * shift / (2 * self.noise**2))

    def output(self, losses: Array) -> Array:
        """Return the output at which the loss is each of ascending values; -inf where it is always more.

        Raises:
          ArithmeticError: An output was not found.
        """
        found = np.full(losses.shape, -np.inf)
        lowest = math.log1p(-self.moved) if self.moved < 1 else -np.inf
        inside = losses > lowest
        if not inside.any():
            return found
        goal = losses[inside]
        # Each term alone bounds the loss from below: where one has the value, the root is left of it.
        alone = np.log(self.weights)[:, None]
        each = (goal - alone) * self.noise**2 / self.shifts[:, None] + self.shifts[:, None] / 2
        right = np.asarray(each.min(axis=0))
        x = np.minimum(right, self._from_knots(goal, float(right.min()), float(right.max())))
        for _ in range(_NEWTON_STEPS):
            terms = self._terms(x)
            largest = terms.max(axis=0)
            parts = np.exp(terms - largest)
            total = parts.sum(axis=0)
            value = largest + np.log(total)
            slope = (self._all @ parts) / total / self.noise**2
            step = np.where(slope > 0, (value - goal) / np.where(slope > 0, slope, 1.0), 0.0)
            x = np.minimum(x - step, right)
            if np.all(np.abs(step) <= 1e-13 * (1 + np.abs(x))):
                break
        if not np.all(np.abs(self.loss(x) - goal) <= _SOLVED * (1 + np.abs(goal))):
            raise ArithmeticError(f"no root of the loss of {self._all} at noise {self.noise}")
        found[inside] = x
        return found

    def _from_knots(self, goal: Array, low: float, high: float) -> Array:
        """Return a start near the roots by interpolation: a chord of a convex function lies above it, so its root
        lies left of the true one, from where one step goes to the right of it."""
        knots = np.linspace(low - REACH * self.noise, high, _KNOTS)
        values = self.loss(knots)
        rising = np.concatenate([[True], np.diff(values) > 0])
        return np.asarray(np.interp(goal, values[rising], knots[rising]))

    def top(self) -> float:
        """Return an output beyond which the mixture has less than 1e-24 of its mass."""
        low, high = 0.0, float(self.shifts.max()) + 2 * REACH * self.noise
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.above(middle) > _BEYOND else (low, middle)
        return high

    def above(self, x: float) -> float:
        """Return the mass of the mixture beyond an output."""
        return float(self.weights @ ndtr((self.shifts - x) / self.noise)) + (
            (1 - self.moved) * float(ndtr(-x / self.noise))
        )

    def spread(self) -> float:
        """Return the approximate standard deviation of the loss: the root of the chi-squared divergence."""
        exponents = np.minimum(np.outer(self.shifts, self.shifts) / self.noise**2, 100.0)
        return math.sqrt(float(self.weights @ np.expm1(exponents) @ self.weights))

    def largest_loss(self) -> float:
        """Return the largest finite loss of `mixture_losses`, in either direction."""
        ends = self.loss(np.array([self.top(), -REACH * self.noise]))
        return float(max(ends[0], -ends[1]))


def mixture_losses(mixture: Mixture, interval: float) -> tuple[LossDistribution, LossDistribution]:
    """Return the loss distributions (remove, add), pessimistic.

    Args:
      mixture: The pair.
      interval: Distance between two losses.
    """
    noise, moved = mixture.noise, mixture.moved
    lowest, highest = mixture.loss(np.array([-REACH * noise, REACH * noise]))
    top = float(mixture.loss(np.array([mixture.top()]))[0])

    first, last = math.floor(lowest / interval), math.ceil(top / interval)
    grid: Array = np.arange(first, last + 1, dtype=np.float64) * interval
    edges = mixture.output(grid)
    zero, shifted = log_masses(edges, 0.0, noise), _shifted(mixture, edges)
    epsilon = grid[:-1]
    mass = (1 - moved) * np.exp(zero) + shifted
    gap = shifted - times(zero, epsilon, moved)  # P(cell) - exp(epsilon) Q(cell)
    below = 1 - mixture.above(float(edges[0])) if np.isfinite(edges[0]) else 0.0
    beyond = mixture.above(float(edges[-1]))
    remove = connected(interval, first, mass, gap, max(below, 0.0), beyond)

    first, last = math.floor(-highest / interval), math.ceil(-lowest / interval)
    last = max(last, first + 1)
    grid = np.arange(first, last + 1, dtype=np.float64) * interval
    edges = mixture.output(-grid[::-1])  # ascending in x, descending in the loss
    zero = log_masses(edges, 0.0, noise)[::-1]
    epsilon = grid[:-1]
    mass = np.exp(zero)
    # exp(epsilon + ln(shifted)): the product of a large factor and a small mass.
    with np.errstate(divide="ignore"):
        shifted = np.exp(epsilon + np.log(_shifted(mixture, edges)[::-1]))
    rest = np.expm1(epsilon + math.log1p(-moved)) if moved < 1 else -np.ones_like(epsilon)
    gap = -mass * rest - shifted
    below, beyond = float(ndtr(-edges[-1] / noise)), float(ndtr(edges[0] / noise))
    return remove, connected(interval, first, mass, gap, below, beyond)


def _shifted(mixture: Mixture, edges: Array) -> Array:
    """Return the mass between neighbouring edges of what is shifted."""
    total = np.zeros(len(edges) - 1)
    for shift, weight in zip(mixture.shifts, mixture.weights, strict=True):
        total += weight * np.exp(log_masses(edges, float(shift), mixture.noise))
    return total
