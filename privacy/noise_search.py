"""Search for the noise on one number that disturbs least at a given (epsilon, delta).

The offline search of LMO-DP (arXiv 2405.18776), under exact accounting: each candidate is scaled until its
privacy loss distribution, sampled and composed as asked, keeps to (epsilon, delta), and then judged by its
standard deviation, by E|x|, or by P(|x| < gamma). A coarse grid of each family's shapes comes first,
then the best of them are refined; nothing is drawn at random, so that the same question has the same
answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dp_accounting.dp_event import DpEvent
from scipy.optimize import minimize, minimize_scalar

from privacy.accountants import make_accountant
from privacy.accountants.loss_distribution import LossDistribution, compose
from privacy.accountants.scalar_loss import scalar_losses, scalar_spread
from privacy.calibration import GOAL, solve_decreasing
from privacy.events import multiset, scalar_noise
from privacy.noise_families import SPACES, SearchSpace, Shape
from privacy.result_cache import read_result, write_result
from privacy.scalar_noise import ScalarNoise, noise_from_dict

_FORMAT = 1  # part of the cache's key: raise it when an answer may change
_TIE = 1e-3  # relative gain below which the simpler family is named
_COARSE, _FINE = 2e-3, 1e-4  # tolerances of epsilon
_CELLS_OF_SPREAD, _CELLS_OF_EPSILON = 30, 400
_MOST_CELLS = 300_000
_LARGEST_AMOUNT, _SMALLEST_AMOUNT = 1e9, 1e-4
_LOCAL_STEPS = {1: 14, 4: 140}  # by the number of a shape's parameters
SMALLEST_DELTA = 1e-13  # below, floating point is most of what the accountant answers


class Objective(StrEnum):
    """What the search minimises; `usefulness` is the probability that |noise| is below `gamma`."""

    STD = "std"
    MEAN_ABS = "mean-abs"
    USEFULNESS = "usefulness"


@dataclass(frozen=True)
class NoiseQuestion:
    """What the noise is for: numbers that one record changes by at most 1, each in a step of its own.

    Attributes:
      epsilon, delta: The target of all steps together, under add-or-remove-one.
      steps: How many numbers are released.
      sampling_rate: Probability of each record to be in a step, drawn anew for each (Poisson).
      objective: What is made least (of usefulness: its complement).
      gamma: For usefulness: the error that is acceptable, in units of the sensitivity; 0 is the
        standard deviation of the Gaussian that keeps to the target.

    Raises:
      ValueError: A value is out of range.
    """

    epsilon: float
    delta: float
    steps: int = 1
    sampling_rate: float = 1.0
    objective: Objective = Objective.STD
    gamma: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise ValueError(f"Expected a finite epsilon > 0, got epsilon={self.epsilon}")
        if not SMALLEST_DELTA <= self.delta < 1:
            raise ValueError(f"Expected {SMALLEST_DELTA:g} <= delta < 1, got delta={self.delta}")
        if isinstance(self.steps, bool) or self.steps != int(self.steps) or self.steps < 1:
            raise ValueError(f"Expected a whole number of steps >= 1, got steps={self.steps}")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(
                f"Expected 0 < sampling_rate <= 1, got sampling_rate={self.sampling_rate}"
            )
        if not (self.gamma >= 0 and math.isfinite(self.gamma)):
            raise ValueError(f"Expected a finite gamma >= 0, got gamma={self.gamma}")


@dataclass(frozen=True)
class Candidate:
    """The best noise of one family.

    Attributes:
      noise: For a number of sensitivity 1; `noise.scaled(c)` for sensitivity c.
      epsilon: What all steps cost by the PLD accountant: at most the target.
      value: The objective, least is best.
      tried: How many shapes were calibrated.
    """

    noise: ScalarNoise
    epsilon: float
    value: float
    tried: int


@dataclass(frozen=True)
class NoiseSearch:
    """The answer: every family's best, from the simplest family to the richest.

    Attributes:
      question: With `gamma` filled in.
      candidates: By family.
    """

    question: NoiseQuestion
    candidates: dict[str, Candidate]

    @property
    def winner(self) -> Candidate:
        """The best; where families are within 0.1 % of it, the simplest of these."""
        best = min(candidate.value for candidate in self.candidates.values())
        close = (c for c in self.candidates.values() if c.value <= best * (1 + _TIE))
        return next(close)

    @property
    def gaussian(self) -> Candidate:
        """The Gaussian that keeps to the same target."""
        return self.candidates["gaussian"]


Progress = Callable[[float, str], None]


def search_noise(
    question: NoiseQuestion,
    cache_dir: Path | None = None,
    progress: Progress = lambda share, family: None,
    families: tuple[str, ...] = (),
) -> NoiseSearch:
    """Return the best noise of every family for a question.

    Args:
      question: The target and the objective.
      cache_dir: Where answers are kept, each family's as soon as it is found; None keeps none.
      progress: Called with the share that is done, 0 to 1, and the family at work.
      families: Only these, and the Gaussian; empty for all.

    Raises:
      ValueError: No amount of noise keeps to the target.

    Guarantee: of every candidate, `epsilon` is an upper bound by the PLD accountant at the question's
    delta, steps and sampling rate, and is at most the question's epsilon.
    """
    spaces = [s for s in SPACES if not families or s.family in ("gaussian", *families)]
    candidates: dict[str, Candidate] = {}
    for place, space in enumerate(spaces):

        def tell(share: float, place: int = place, family: str = space.family) -> None:
            progress((place + min(share, 1.0)) / len(spaces), family)

        tell(0.0)
        candidates[space.family] = _family(question, space, cache_dir, tell)
        if space.family == "gaussian" and question.gamma == 0:
            std = candidates["gaussian"].noise.std
            question = NoiseQuestion(**{**asdict(question), "gamma": std})
    progress(1.0, "")
    return NoiseSearch(question, candidates)


def _family(
    question: NoiseQuestion,
    space: SearchSpace,
    cache_dir: Path | None,
    tell: Callable[[float], None],
) -> Candidate:
    key = {
        "format": _FORMAT,
        "dp-accounting": version("dp-accounting"),
        "family": space.family,
        **{k: repr(v) if isinstance(v, float) else v for k, v in asdict(question).items()},
    }
    if question.objective is not Objective.USEFULNESS or space.family == "gaussian":
        key["gamma"] = None  # it changes nothing
    stored = read_result(cache_dir, "noise", key)
    try:
        return Candidate(**{**stored, "noise": noise_from_dict(stored["noise"])})
    except (TypeError, KeyError, ValueError):  # none, or none of ours
        pass
    found = _Search(question, space, tell).run()
    result = {**asdict(found), "noise": found.noise.to_dict()}
    write_result(cache_dir, "noise", key, result)
    return found


def objective_value(noise: ScalarNoise, question: NoiseQuestion) -> float:
    """What the search makes least, of one noise."""
    if question.objective is Objective.STD:
        return noise.std
    if question.objective is Objective.MEAN_ABS:
        return noise.mean_abs
    return 2 * float(noise.survival(question.gamma))


def composed_loss(noise: ScalarNoise, question: NoiseQuestion) -> tuple[LossDistribution, ...]:
    """The loss of all steps, one distribution a direction: an upper bound, fine enough to search by."""
    spread, reach = scalar_spread(noise, question.sampling_rate, 1.0)
    interval = min(spread / _CELLS_OF_SPREAD, question.epsilon / _CELLS_OF_EPSILON)
    interval = max(interval, min(reach, 100.0) / _MOST_CELLS)
    while True:
        parts = scalar_losses(noise, question.sampling_rate, 1.0, interval)
        found = [compose([(part, question.steps)], 10 * _MOST_CELLS) for part in parts]
        whole = tuple(part for part in found if part is not None)
        if len(whole) == len(parts):
            return whole
        interval *= 2


@dataclass
class _Search:
    """The search through one family."""

    question: NoiseQuestion
    space: SearchSpace
    tell: Callable[[float], None]

    def __post_init__(self) -> None:
        self.known: dict[Shape, tuple[float, float]] = {}  # shape -> (value, amount)
        self.amount = 1.0  # of the last shape: the next one's is near
        dimension = len(self.space.low)
        self.expected = len(self.space.grid) + 2 * _LOCAL_STEPS.get(dimension, 0)

    def run(self) -> Candidate:
        for shape in self.space.grid:
            self.value(shape)
        for start in self._starts():
            self._refine(start)
        shape = min(self.known, key=lambda s: (self.known[s][0], s))
        if not math.isfinite(self.known[shape][0]):
            raise ValueError(f"No {self.space.family} noise keeps to the target of {self.question}")
        amount, epsilon = self._least_amount(shape, self.known[shape][1], self._epsilon, _FINE)
        noise = self.space.make(shape, amount)
        return Candidate(noise, epsilon, objective_value(noise, self.question), len(self.known))

    def value(self, shape: Shape) -> float:
        """The objective of a shape in the least amount that keeps to the target."""
        shape = self.space.clipped(shape)
        if shape not in self.known:
            unit = self.space.make(shape, 1.0)
            useful = math.isfinite(objective_value(unit, self.question))
            self.known[shape] = self._measure(shape) if useful else (math.inf, math.nan)
            self.tell(len(self.known) / self.expected)
        return self.known[shape][0]

    def _measure(self, shape: Shape) -> tuple[float, float]:
        try:
            amount, _ = self._least_amount(shape, self.amount, self._quick_epsilon, _COARSE)
        except ValueError:
            return math.inf, math.nan
        self.amount = amount
        return objective_value(self.space.make(shape, amount), self.question), amount

    def _least_amount(
        self, shape: Shape, near: float, cost: Callable[[ScalarNoise], float], tolerance: float
    ) -> tuple[float, float]:
        """(amount, epsilon) with epsilon within the tolerance of the target, never above it."""

        @cache
        def of(amount: float) -> float:
            return cost(self.space.make(shape, amount))

        goal = self.question.epsilon * GOAL
        factor = 1.05 if tolerance == _FINE else 1.3
        high = near
        while of(high) > goal:
            high *= factor
            factor = min(factor**2, 16.0)
            if high > _LARGEST_AMOUNT:
                raise ValueError(f"No amount of {self.space.family} noise keeps to the target")
        low = high / factor
        while of(low) <= goal and low > _SMALLEST_AMOUNT:
            high, low = low, low / factor
            factor = min(factor**2, 16.0)
        return solve_decreasing(of, goal, tolerance, low, high)

    def _quick_epsilon(self, noise: ScalarNoise) -> float:
        return max(d.epsilon(self.question.delta) for d in composed_loss(noise, self.question))

    def _epsilon(self, noise: ScalarNoise) -> float:
        return make_accountant("pld").epsilon(events(noise, self.question), self.question.delta)

    def _starts(self) -> list[Shape]:
        """The grid's best shape and, of those that are not beside it, the second."""
        if not self.space.low:
            return []
        order = sorted(self.known, key=lambda s: (self.known[s][0], s))
        best = order[0]
        if len(best) > 1:
            return order[:2]
        places = sorted(self.known)
        apart = [s for s in order if abs(places.index(s) - places.index(best)) > 1]
        return [best, *apart[:1]]

    def _refine(self, start: Shape) -> None:
        if len(start) == 1:
            places = sorted(self.known)
            at = places.index(start)
            low, high = places[max(at - 1, 0)][0], places[min(at + 1, len(places) - 1)][0]
            minimize_scalar(
                lambda x: self.value((float(x),)),
                bounds=(low, high),
                method="bounded",
                options={"maxiter": _LOCAL_STEPS[1], "xatol": 2e-3 * (high - low)},
            )
            return
        simplex = [start]
        for i, (low, high) in enumerate(zip(self.space.low, self.space.high, strict=True)):
            step = 0.2 * (high - low)
            moved = list(start)
            moved[i] += step if start[i] + step <= high else -step
            simplex.append(tuple(moved))
        minimize(
            lambda x: self.value(tuple(x)),
            start,
            method="Nelder-Mead",
            options={
                "initial_simplex": simplex,
                "maxfev": _LOCAL_STEPS[len(start)],
                "xatol": 1e-3,
                "fatol": 1e-4 * self.value(start),
            },
        )


def events(noise: ScalarNoise, question: NoiseQuestion) -> Counter[DpEvent]:
    """What the question's steps cost with this noise, as the ledger would hold it."""
    return multiset(scalar_noise(noise, question.steps, question.sampling_rate))


def figures(search: NoiseSearch) -> dict[str, Any]:
    """The answer as JSON's types: the winner, the Gaussian, and every family's best.

    Returns:
      `family`, `parameters`, `std`, `mean_abs` of the winner; `gaussian_std` and the winner's ratios to
      the Gaussian `ratio_std` and `ratio_mean_abs`; the question; `families`, the same of each.
    """
    gaussian = search.gaussian.noise

    def of(candidate: Candidate) -> dict[str, Any]:
        noise = candidate.noise
        return {
            **noise.to_dict(),
            "std": noise.std,
            "mean_abs": noise.mean_abs,
            "usefulness": noise.usefulness(search.question.gamma),
            "ratio_std": noise.std / gaussian.std,
            "ratio_mean_abs": noise.mean_abs / gaussian.mean_abs,
            "epsilon": candidate.epsilon,
        }

    question: Mapping[str, Any] = asdict(search.question)
    return {
        **of(search.winner),
        "gaussian_std": gaussian.std,
        "question": {**question, "objective": str(search.question.objective)},
        "families": [of(candidate) for candidate in search.candidates.values()],
    }
