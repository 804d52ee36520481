"""Find the lowest-variance noise on one number that meets a given (epsilon, delta).

The offline search of LMO-DP (arXiv 2405.18776), under exact accounting: each candidate is scaled until its
privacy loss distribution, sampled and composed as asked, keeps to (epsilon, delta), and then judged by its
standard deviation, by E|x|, or by P(|x| < gamma). A coarse grid of each family's shapes comes first,
then the best of them are refined; nothing is drawn at random, so that the same question has the same
answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scipy.optimize import minimize, minimize_scalar

from privacy.accountants import make_accountant
from privacy.accountants.losses.distribution import LossDistribution, compose
from privacy.accountants.losses.scalar import scalar_losses, scalar_spread
from privacy.calibration import GOAL, solve_decreasing
from privacy.events.constructors import scalar_noise
from privacy.events.multiset import multiset
from privacy.mechanisms.scalar_noise import ScalarNoise, noise_from_dict
from privacy.noise_search.families import SearchSpace, Shape, pure_laplace_space, search_spaces
from privacy.noise_search.question import NoiseQuestion, Objective
from privacy.noise_search.vectors import splits, spread_losses
from privacy.result_cache import read_result, write_result

_LIBRARY = version("dp-accounting")
_TIE = 1e-3  # relative gain below which the simpler family is named
_COARSE, _FINE = 2e-3, 1e-4  # tolerances of epsilon
_CELLS_OF_SPREAD, _CELLS_OF_EPSILON = 30, 400
_MOST_CELLS = 300_000
_LARGEST_AMOUNT, _SMALLEST_AMOUNT = 1e9, 1e-4
_LOCAL_STEPS = {1: 14, 5: 120}  # by the number of a shape's parameters


@dataclass(frozen=True)
class Candidate:
    """The best noise of one family.

    Attributes:
      noise: For a number, or a vector, of sensitivity 1; `noise.scaled(c)` for sensitivity c.
      epsilon: What all steps cost, at most the target: by the PLD accountant, unless `floor`.
      value: The objective, least is best.
      tried: How many shapes were calibrated.
      floor: Of a vector: the noise is the least that could be enough, and comes without a guarantee
        (`vectors`); epsilon is that of the changes that were looked at.
    """

    noise: ScalarNoise
    epsilon: float
    value: float
    tried: int
    floor: bool = False


@dataclass(frozen=True)
class NoiseSearch:
    """The answer: every family's best, from the simplest family to the richest.

    Attributes:
      question: With `gamma` filled in.
      candidates: By family.
      proven: Of vectors, Laplace noise with a guarantee, by pure privacy; None for numbers.
    """

    question: NoiseQuestion
    candidates: dict[str, Candidate]
    proven: Candidate | None = None

    @property
    def winner(self) -> Candidate:
        """The best noise with a guarantee; of families within 0.1 % of it, the simplest."""
        offered = [c for c in (*self.candidates.values(), self.proven) if c and not c.floor]
        best = min(candidate.value for candidate in offered)
        return next(c for c in offered if c.value <= best * (1 + _TIE))

    @property
    def gaussian(self) -> Candidate:
        """The Gaussian that meets the same target."""
        return self.candidates["gaussian"]

    @property
    def undecided(self) -> list[str]:
        """Families that may be better than the winner, but have no guarantee for vectors."""
        limit = self.winner.value * (1 - _TIE)
        return [f for f, c in self.candidates.items() if c.floor and c.value < limit]


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

    Guarantee: of every candidate that is no floor, `epsilon` is an upper bound by the PLD accountant at
    the question's delta, steps and sampling rate, and is at most the question's epsilon.
    """
    spaces = search_spaces(question.dimension)
    spaces = [s for s in spaces if not families or s.family in ("gaussian", *families)]
    candidates: dict[str, Candidate] = {}
    for place, space in enumerate(spaces):

        def tell(share: float, place: int = place, family: str = space.family) -> None:
            progress((place + min(share, 1.0)) / len(spaces), family)

        tell(0.0)
        floor = question.dimension > 1 and space.family != "gaussian"
        candidates[space.family] = _kept(question, space, floor, cache_dir, tell)
        if space.family == "gaussian" and question.gamma == 0:
            question = replace(question, gamma=candidates["gaussian"].noise.std)
    proven = None
    if question.dimension > 1 and "laplace" in candidates:
        pure = pure_laplace_space(question.dimension)
        proven = _kept(question, pure, False, cache_dir, lambda share: None)
    progress(1.0, "")
    return NoiseSearch(question, candidates, proven)


def _kept(
    question: NoiseQuestion,
    space: SearchSpace,
    floor: bool,
    cache_dir: Path | None,
    tell: Callable[[float], None],
) -> Candidate:
    """Return the best of one family, from the cache if it is there."""
    asked = question
    if question.objective is not Objective.USEFULNESS or space.family == "gaussian":
        asked = replace(question, gamma=0.0)  # it changes nothing
    key = asked.key(family=space.family, accounted=space.accounted_as, library=_LIBRARY)
    stored = read_result(cache_dir, "noise", key)
    try:
        return Candidate(**{**stored, "noise": noise_from_dict(stored["noise"])})
    except (TypeError, KeyError, ValueError):  # none, or none of ours
        pass
    found = _Search(question, space, floor, tell).run()
    write_result(cache_dir, "noise", key, {**asdict(found), "noise": found.noise.to_dict()})
    return found


def objective_value(noise: ScalarNoise, question: NoiseQuestion) -> float:
    """Return the minimised objective of one noise."""
    if question.objective is Objective.STD:
        return noise.std
    if question.objective is Objective.MEAN_ABS:
        return noise.mean_abs
    return 2 * float(noise.survival(question.gamma))


def composed_loss(noise: ScalarNoise, question: NoiseQuestion) -> tuple[LossDistribution, ...]:
    """Return the loss of all steps, one distribution a direction.

    Of numbers (and of Gaussian noise, whatever the dimension) an upper bound, fine enough to search by; of
    vectors that of the change spread over most entries.
    """
    if question.dimension > 1 and noise.family != "gaussian":
        most = splits(question.dimension)[-1]
        return _spread(noise, question, most)
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


def _spread(
    noise: ScalarNoise, question: NoiseQuestion, entries: int
) -> tuple[LossDistribution, ...]:
    resolution = question.epsilon / _CELLS_OF_EPSILON
    return spread_losses(noise, entries, question.sampling_rate, question.steps, resolution)


def quick_epsilon(noise: ScalarNoise, question: NoiseQuestion) -> float:
    """Return epsilon of all steps: for numbers an upper bound, for vectors a lower bound (`vectors`)."""
    if question.dimension == 1 or noise.family == "gaussian":
        losses = composed_loss(noise, question)
    else:
        each = (_spread(noise, question, entries) for entries in splits(question.dimension))
        losses = tuple(loss for pair in each for loss in pair)
    return max(loss.epsilon(question.delta) for loss in losses)


def accounted_epsilon(noise: ScalarNoise, question: NoiseQuestion) -> float:
    """Return epsilon of all steps by the ledger's headline accountant, for a number of sensitivity 1."""
    events = multiset({scalar_noise(noise, question.steps, question.sampling_rate): 1})
    return make_accountant("pld").epsilon(events, question.delta)


@dataclass
class _Search:
    """The search through one family."""

    question: NoiseQuestion
    space: SearchSpace
    floor: bool
    tell: Callable[[float], None]

    def __post_init__(self) -> None:
        self.known: dict[Shape, tuple[float, float]] = {}  # shape -> (value, amount)
        self.amount = 1.0  # of the last shape: the next one's is near
        dimension = len(self.space.low)
        local = 2 * _LOCAL_STEPS.get(dimension, 0) if dimension == 1 or not self.floor else 0
        self.expected = len(self.space.grid) + local

    def run(self) -> Candidate:
        for shape in self.space.grid:
            self.value(shape)
        for start in self._starts():
            if len(start) == 1 or not self.floor:  # of vectors' mixtures the grid says enough
                self._refine(start)
        shape = min(self.known, key=lambda s: (self.known[s][0], s))
        if not math.isfinite(self.known[shape][0]):
            raise ValueError(f"No {self.space.family} noise keeps to the target of {self.question}")
        final = self._quick if self.floor else self._accounted
        amount, epsilon = self._least_amount(shape, self.known[shape][1], final, _FINE)
        noise = self.space.make(shape, amount)
        value = objective_value(noise, self.question)
        return Candidate(noise, epsilon, value, len(self.known), self.floor)

    def value(self, shape: Shape) -> float:
        """Return the objective of a shape in the least amount that keeps to the target."""
        shape = self.space.clipped(shape)
        if shape not in self.known:
            unit = self.space.make(shape, 1.0)
            useful = math.isfinite(objective_value(unit, self.question))
            self.known[shape] = self._measure(shape) if useful else (math.inf, math.nan)
            self.tell(len(self.known) / self.expected)
        return self.known[shape][0]

    def _measure(self, shape: Shape) -> tuple[float, float]:
        try:
            amount, _ = self._least_amount(shape, self.amount, self._quick, _COARSE)
        except ValueError:
            return math.inf, math.nan
        self.amount = amount
        return objective_value(self.space.make(shape, amount), self.question), amount

    def _least_amount(
        self, shape: Shape, near: float, cost: Callable[[ScalarNoise], float], tolerance: float
    ) -> tuple[float, float]:
        """Return (amount, epsilon) with epsilon within the tolerance of the target, never above it."""

        @cache
        def of(amount: float) -> float:
            return cost(self.space.accounted(shape, amount))

        # Bracket the least amount from the last shape's, with growing factors: neighbouring shapes
        # need similar amounts, and an evaluation composes a whole loss distribution.
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

    def _quick(self, noise: ScalarNoise) -> float:
        # What has a guarantee is accounted as a number: the Gaussian, and the bound by pure privacy.
        asked = self.question if self.floor else replace(self.question, dimension=1)
        return quick_epsilon(noise, asked)

    def _accounted(self, noise: ScalarNoise) -> float:
        return accounted_epsilon(noise, self.question)

    def _starts(self) -> list[Shape]:
        """Return the grid's best shape and, of those that are not next to it, the second."""
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


def figures(search: NoiseSearch) -> dict[str, Any]:
    """Return the answer as JSON's types: the winner, the Gaussian, and every family's best.

    Returns:
      `family`, `parameters`, `std`, `mean_abs` of the winner; `gaussian_std` and the winner's ratios to
      the Gaussian `ratio_std` and `ratio_mean_abs`; the question; `families`, the same of each (`floor`:
      at least so much is needed); of vectors `proven_laplace` and the families left `undecided`.
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
            "floor": candidate.floor,
        }

    return {
        **of(search.winner),
        "gaussian_std": gaussian.std,
        "question": search.question.to_dict(),
        "families": [of(candidate) for candidate in search.candidates.values()],
        **({"proven_laplace": of(search.proven)} if search.proven else {}),
        "undecided": search.undecided,
    }
