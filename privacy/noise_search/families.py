"""Search space of the noise search: the shapes of each family, scaled to any amount."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from privacy.mechanisms.scalar_noise import (
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
      cost: (shape, amount) -> noise on one number that costs at least as much; None: the noise itself.
      accounted_as: A word for `cost`, of the cache's key.
    """

    family: str
    low: Shape
    high: Shape
    grid: tuple[Shape, ...]
    make: Callable[[Shape, float], ScalarNoise]
    cost: Callable[[Shape, float], ScalarNoise] | None = None
    accounted_as: str = "itself"

    def accounted(self, shape: Shape, amount: float) -> ScalarNoise:
        """Return the noise that is accounted instead of `make(shape, amount)`."""
        return (self.cost or self.make)(shape, amount)

    def clipped(self, shape: Sequence[float]) -> Shape:
        """Return the nearest shape within the bounds."""
        limits = zip(shape, self.low, self.high, strict=True)
        return tuple(min(max(float(value), low), high) for value, low, high in limits)


def _gaussian(shape: Shape, amount: float) -> ScalarNoise:
    return GaussianNoise(amount)


def _laplace(shape: Shape, amount: float) -> ScalarNoise:
    return LaplaceNoise(amount)


def _exponential_power(shape: Shape, amount: float) -> ScalarNoise:
    """Make exponential-power noise; the shape is ln beta."""
    unit = ExponentialPowerNoise(math.exp(shape[0]), 1.0)
    return unit.scaled(amount / unit.mean_abs)


def _staircase(shape: Shape, amount: float, period: float = 1.0) -> ScalarNoise:
    """Make staircase noise; the shape is gamma, the amount of noise the inverse of the step's loss."""
    return StaircaseNoise(period / amount, shape[0], period)


def _lmo(shape: Shape, amount: float) -> ScalarNoise:
    """Make LMO noise; the shape is (gamma term, normal term, exponential term, ln k, spread), with mean of u 1.

    The terms' shares of E[u], the rest being the uniform term's. Uniform and truncated normal are on (1 -
    spread, 1 + spread), the normal with mean 1 and half the spread for its standard deviation; without
    spread they are the same.
    """
    first, second, third, log_k, spread = shape
    whole = first + second + third
    if whole > 1:
        first, second, third = first / whole, second / whole, third / whole
    if spread < _LEAST_SPREAD:
        second = 0.0
    fourth = max(0.0, 1 - first - second - third)
    k = math.exp(log_k)
    return LmoNoise(
        a2=second,
        normal_mean=1.0,
        normal_std=spread / 2 if second else 1.0,
        normal_low=1 - spread if second else 0.0,
        normal_high=1 + spread if second else 2.0,
        a1=first,
        a3=third,
        a4=fourth,
        gamma_shape=k if first else 1.0,
        gamma_scale=1 / k if first else 1.0,
        exponential_rate=1.0,
        uniform_low=1 - spread,
        uniform_high=1 + spread,
    ).scaled(amount)


def _between(low: float, high: float, count: int) -> tuple[Shape, ...]:
    return tuple((low + (high - low) * i / (count - 1),) for i in range(count))


_LOG_BETA = (math.log(0.5), math.log(4.0))
_LOG_K = (math.log(0.25), math.log(64.0))


def search_spaces(dimension: int) -> list[SearchSpace]:
    """Return the families from the simplest to the richest: ties go to the simpler.

    Of vectors the staircase's steps are as wide as the change of an entry that is spread over all.
    """
    steps = partial(_staircase, period=dimension**-0.5)
    return [replace(s, make=steps) if s.family == "staircase" else s for s in _SPACES]


def pure_laplace_space(dimension: int) -> SearchSpace:
    """Return the search space of Laplace noise on each entry of a vector, accounted by pure DP.

    Guarantee: a change v of L2 norm 1 has an L1 norm of at most sqrt(dimension), so one release is (e,
    0)-DP with e = sqrt(dimension) / scale, and no such mechanism costs more than randomised response
    (Kairouz, Oh and Viswanath 2015, "The composition theorem for differential privacy"),
    which a staircase of gamma = 1/2 is: its loss is e or -e, with those probabilities.
    """
    return SearchSpace(
        "laplace",
        (),
        (),
        ((),),
        _laplace,
        lambda shape, amount: StaircaseNoise(dimension**0.5 / amount, 0.5),
        "pure",
    )


_SPACES: tuple[SearchSpace, ...] = (
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
        (0.0, 0.0, 0.0, _LOG_K[0], 0.0),
        (1.0, 1.0, 1.0, _LOG_K[1], 1.0),
        (
            (0.0, 0.0, 0.0, 0.0, 0.0),  # plain Laplace
            *((first, 0.6, 0.0, math.log(4.0), 0.7) for first in (0.0, 0.3)),
            *(
                (first, 0.0, third, math.log(k), spread)
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
