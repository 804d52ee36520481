"""What `noise_search` looks through: each family's shapes, and noise of a shape in any amount."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from privacy.scalar_noise import (
    ExponentialPowerNoise,
    GaussianNoise,
    LaplaceNoise,
    LmoNoise,
    ScalarNoise,
    StaircaseNoise,
)

Shape = tuple[float, ...]
_LEAST_GAMMA = 1e-3  # of a staircase: its top step all but vanishes
_LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class SearchSpace:
    """A family as a set of shapes, each of which comes in any amount.

    Attributes:
      family: As in `ScalarNoise.family`.
      low, high: Bounds of each number of a shape; empty where the family has one shape only.
      grid: Shapes to try first.
      make: (shape, amount > 0) -> noise. More noise hides more: epsilon falls with the amount.
    """

    family: str
    low: Shape
    high: Shape
    grid: tuple[Shape, ...]
    make: Callable[[Shape, float], ScalarNoise]

    def clipped(self, shape: Sequence[float]) -> Shape:
        """The nearest shape within the bounds."""
        limits = zip(shape, self.low, self.high, strict=True)
        return tuple(min(max(float(value), low), high) for value, low, high in limits)


def _gaussian(shape: Shape, amount: float) -> ScalarNoise:
    return GaussianNoise(amount)


def _laplace(shape: Shape, amount: float) -> ScalarNoise:
    return LaplaceNoise(amount)


def _exponential_power(shape: Shape, amount: float) -> ScalarNoise:
    """The shape is ln beta."""
    unit = ExponentialPowerNoise(math.exp(shape[0]), 1.0)
    return unit.scaled(amount / unit.mean_abs)


def _staircase(shape: Shape, amount: float) -> ScalarNoise:
    """The shape is gamma; the amount of noise is the inverse of the step's loss."""
    return StaircaseNoise(1 / amount, shape[0])


def _lmo(shape: Shape, amount: float) -> ScalarNoise:
    """The shape is (gamma term, exponential term, ln k, spread), the mean of u before scaling 1.

    The terms' shares of E[u], the rest being the uniform term's on (1 - spread, 1 + spread).
    """
    first, third, log_k, spread = shape
    if first + third > 1:
        first, third = first / (first + third), third / (first + third)
    fourth = max(0.0, 1 - first - third)
    k = math.exp(log_k)
    return LmoNoise(
        a1=first,
        a3=third,
        a4=fourth,
        gamma_shape=k,
        gamma_scale=1 / k,
        exponential_rate=1.0,
        uniform_low=1 - spread,
        uniform_high=1 + spread,
    ).scaled(amount)


def _between(low: float, high: float, count: int) -> tuple[Shape, ...]:
    return tuple((low + (high - low) * i / (count - 1),) for i in range(count))


_LOG_BETA = (math.log(0.5), math.log(4.0))
_LOG_K = (math.log(0.25), math.log(64.0))

SPACES: tuple[SearchSpace, ...] = (  # from the simplest to the richest: ties go to the simpler
    SearchSpace("gaussian", (), (), ((),), _gaussian),
    SearchSpace("laplace", (), (), ((),), _laplace),
    SearchSpace(
        "exponential-power",
        (_LOG_BETA[0],),
        (_LOG_BETA[1],),
        _between(*_LOG_BETA, 13),  # with beta = 1 and 2 among them
        _exponential_power,
    ),
    SearchSpace(
        "staircase",
        (_LEAST_GAMMA,),
        (1.0,),
        ((0.03,), *_between(0.1, 1.0, 13)),
        _staircase,
    ),
    SearchSpace(
        "lmo",
        (0.0, 0.0, _LOG_K[0], 0.0),
        (1.0, 1.0, _LOG_K[1], 1.0),
        (
            (0.0, 0.0, 0.0, 0.0),  # plain Laplace
            *(
                (first, third, math.log(k), spread)
                for (first, third), k, spread in itertools.product(
                    ((0.3, 0.0), (0.7, 0.0), (0.0, 0.3), (0.0, 0.7), (0.3, 0.3)),
                    (0.5, 4.0),
                    (0.0, 0.7),
                )
            ),
        ),
        _lmo,
    ),
)
