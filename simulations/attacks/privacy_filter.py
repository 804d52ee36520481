"""An adversary that chooses what is run next after seeing what came before, against the budget.

    python -m simulations.attacks.privacy_filter [--trials 1000000] [--json [OUT]]

One number is released in each step: a record's bit (0 or 1), Poisson-sampled, plus Gaussian noise. The adversary
asks for plans; :class:`privacy.budget.Budget` decides which are admitted. For each transcript the exact likelihood
ratio of "the record is there" is known, so that the mean of max(0, 1 - exp(epsilon - log ratio)) over transcripts is an
unbiased estimate of delta at epsilon; both directions, the larger one counts. It must not exceed the stated delta by
more than four standard errors.

Adversaries: ``second-run`` gives the second run the shape (sampling, steps) that is worst given the first one's output;
``stop-when-lucky`` runs small runs until the likelihood ratio is high; ``split`` chooses each of many small runs after
the ones before; ``interleaved`` plans its second run in the middle of the first, and leaves out what it needs no more.

Filters: the one that is chosen, and each of the two by itself. ``joint`` is the rule that was in place before:
tight composition over everything so far, asked before each choice. It is no filter, and is exceeded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dp_accounting.dp_event import DpEvent
from rich.console import Console
from rich.table import Table

from privacy.accountants.pld import PldAccountant
from privacy.budget import Budget, BudgetExceeded
from privacy.calibration import calibrate_noise_multiplier
from privacy.calibration_filter import calibrate_later_plan
from privacy.events.constructors import dp_sgd
from privacy.events.multiset import multiset
from privacy.guarantee import Relation
from privacy.plan_filter import Terms, gaussian_terms, renyi_terms

EPSILON, DELTA = 1.0, 0.01
ERRORS = 4.0
"""Standard errors that an estimate may lie above the stated delta."""
RELATION = Relation.ADD_OR_REMOVE_ONE
SHAPES = ((1.0, 1), (0.5, 1), (0.2, 1), (0.1, 1), (0.05, 1), (0.02, 10))
"""(sampling rate, steps) of what may be run next."""
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One run of DP-SGD steps on the record's bit."""

    rate: float
    noise: float
    steps: int

    @property
    def events(self) -> Counter[DpEvent]:
        """The run's plan."""
        return multiset(dp_sgd(self.rate, self.noise, self.steps))

    def log_ratios(self, present: bool, count: int, steps: int, rng: np.random.Generator) -> Array:
        """Return log likelihood ratios, present over absent, of some steps' outputs: [count]."""
        total = np.zeros(count)
        for _ in range(steps):
            values = rng.normal(0.0, self.noise, count)
            if present:
                values += rng.random(count) < self.rate
            shift = (2 * values - 1) / (2 * self.noise**2)
            with np.errstate(divide="ignore"):
                total += np.logaddexp(np.log1p(-self.rate), np.log(self.rate) + shift)
        return total


class Rule:
    """Decides which plans are admitted: the real budget, or the joint composition of before.

    Args:
        name: "chosen", "gdp", "renyi" or "joint".
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.budget = Budget(EPSILON, DELTA)
        self.admits = lru_cache(maxsize=None)(self._admits)
        self.least_noise = lru_cache(maxsize=None)(self._least_noise)

    def terms(self, first: Run) -> Terms | None:
        """Return the filter that is kept for a first plan; None for the budget's own choice."""
        if self.name == "gdp":
            return gaussian_terms(first.events, EPSILON, DELTA, RELATION)
        if self.name == "renyi":
            return renyi_terms(first.events, EPSILON, DELTA, RELATION)
        return None

    def _admits(self, runs: tuple[Run, ...]) -> bool:
        plans = [run.events for run in runs]
        if self.name == "joint":
            return self.budget.cost(sum(plans, Counter())) <= EPSILON
        try:
            self.budget.admit(plans, self.terms(runs[0]))
        except BudgetExceeded:
            return False
        return True

    def _least_noise(self, runs: tuple[Run, ...], rate: float, steps: int) -> Run:
        """Return a run of this shape with as little noise as is admitted after `runs`."""
        plans = [run.events for run in runs]
        if self.name == "joint":
            noise = calibrate_noise_multiplier(
                epsilon=EPSILON,
                delta=DELTA,
                sampling_rate=rate,
                steps=steps,
                other_events=sum(plans, Counter()),
            ).noise_multiplier
        else:
            noise = calibrate_later_plan(
                terms=self.terms(runs[0]) or self.budget.terms(plans[0]),
                earlier=plans[1:],
                sampling_rate=rate,
                steps=steps,
            )
        found = Run(rate, noise, steps)
        assert self.admits((*runs, found))
        return found


@lru_cache(maxsize=256)
def _value_curve(run: Run, present: bool) -> tuple[Array, Array]:
    """Return a run's contribution to the estimate, by its initial log ratio."""
    pair = PldAccountant(RELATION).composed(run.events)
    part = pair[0 if present else -1]
    width = max(1, part.losses.size // 2000)
    starts = np.arange(0, part.losses.size, width)
    masses = np.add.reduceat(np.maximum(part.probs, 0), starts)
    losses = part.losses[np.minimum(starts + width // 2, part.losses.size - 1)]
    at = np.linspace(-6.0, 6.0, 601)
    gains = np.maximum(0.0, -np.expm1(np.minimum(EPSILON - at[:, None] - losses, 0.0)))
    return at, gains @ masses


def _worst(runs: Sequence[Run], ratios: Array, present: bool) -> npt.NDArray[np.intp]:
    """Return the run that adds most from each log ratio on."""
    sign = 1.0 if present else -1.0
    values = [np.interp(sign * ratios, *_value_curve(run, present)) for run in runs]
    return np.argmax(values, axis=0)


Adversary = Callable[[Rule, bool, int, np.random.Generator], Array]
"""(rule, whether the record is there, transcripts, randomness) -> their log ratios; the adversary plays for the
direction of its second argument."""


def second_run(rule: Rule, present: bool, count: int, rng: np.random.Generator) -> Array:
    """Return the second run has the shape that is worst given the first one's output."""
    first = Run(1.0, 3.0, 1)
    assert rule.admits((first,))
    total = first.log_ratios(present, count, 1, rng)
    menu = [rule.least_noise((first,), *shape) for shape in SHAPES]
    return total + _played(menu, total, present, rng)


def _played(menu: Sequence[Run], ratios: Array, present: bool, rng: np.random.Generator) -> Array:
    """Return the further log ratios where each transcript continues with what is worst for it."""
    gained = np.zeros(ratios.size)
    choice = _worst(menu, ratios, present)
    for number, run in enumerate(menu):
        chosen = choice == number
        gained[chosen] = run.log_ratios(present, int(chosen.sum()), run.steps, rng)
    return gained


def stop_when_lucky(rule: Rule, present: bool, count: int, rng: np.random.Generator) -> Array:
    """Play small runs one after the other, until the ratio is high or the budget refuses."""
    small, sign = Run(1.0, 8.0, 1), 1.0 if present else -1.0
    total, playing = np.zeros(count), np.ones(count, dtype=bool)
    runs: tuple[Run, ...] = (small,)
    while rule.admits(runs):
        total[playing] += small.log_ratios(present, int(playing.sum()), 1, rng)
        playing &= sign * total < EPSILON + 0.3
        runs = (*runs, small)
    return total


def split(rule: Rule, present: bool, count: int, rng: np.random.Generator) -> Array:
    """Play many small runs, each chosen after the previous ones, and finally the rest of the budget."""
    first = Run(1.0, 5.0, 1)
    menu = (Run(1.0, 6.0, 1), Run(0.1, 1.0, 1))
    total = first.log_ratios(present, count, 1, rng)
    groups: dict[tuple[Run, ...], npt.NDArray[np.intp]] = {(first,): np.arange(count)}
    for _ in range(3):
        later: dict[tuple[Run, ...], list[npt.NDArray[np.intp]]] = {}
        for runs, members in groups.items():
            open_to = [run for run in menu if rule.admits((*runs, run))]
            if not open_to:
                continue
            choice = _worst(open_to, total[members], present)
            for number, run in enumerate(open_to):
                chosen = members[choice == number]
                total[chosen] += run.log_ratios(present, chosen.size, run.steps, rng)
                later.setdefault((*runs, run), []).append(chosen)
        groups = {runs: np.concatenate(parts) for runs, parts in later.items()}
    for runs, members in groups.items():
        rest = list(_rests(rule, runs))
        if rest:
            total[members] += _played(rest, total[members], present, rng)
    return total


def _rests(rule: Rule, runs: tuple[Run, ...]) -> Iterator[Run]:
    """Yield one run of each shape that uses up the rest of the budget, if any."""
    for shape in SHAPES:
        try:
            yield rule.least_noise(runs, *shape)
        except ValueError:
            return


def interleaved(rule: Rule, present: bool, count: int, rng: np.random.Generator) -> Array:
    """Return the second run is planned and made between the two halves of the first; the second half is left out
    where the ratio is high already."""
    first, sign = Run(0.5, 2.5, 4), 1.0 if present else -1.0
    assert rule.admits((first,))
    total = first.log_ratios(present, count, 2, rng)
    menu = [rule.least_noise((first,), *shape) for shape in SHAPES]
    total += _played(menu, total, present, rng)
    on = sign * total < EPSILON + 0.5
    total[on] += first.log_ratios(present, int(on.sum()), 2, rng)
    return total


ADVERSARIES: dict[str, Adversary] = {
    "second-run": second_run,
    "stop-when-lucky": stop_when_lucky,
    "split": split,
    "interleaved": interleaved,
}
RULES = ("chosen", "gdp", "renyi", "joint")


@dataclass(frozen=True)
class Estimate:
    """Success of an adversary against a rule: delta at the stated epsilon, the larger of both directions."""

    adversary: str
    rule: str
    delta: float
    error: float

    @property
    def holds(self) -> bool:
        """True if the stated delta is not exceeded, within the error."""
        return self.delta <= DELTA + ERRORS * self.error


def estimate(adversary: str, rule: str, trials: int, seed: int = 0) -> Estimate:
    """Play one adversary against one rule.

    Args:
        trials: transcripts in each direction.
    """
    found = []
    decides = Rule(rule)
    for present in (True, False):
        rng = np.random.default_rng([seed, present])
        ratios = ADVERSARIES[adversary](decides, present, trials, rng)
        losses = ratios if present else -ratios
        gains = np.maximum(0.0, -np.expm1(np.minimum(EPSILON - losses, 0.0)))
        found.append((float(gains.mean()), float(gains.std() / np.sqrt(trials))))
    return Estimate(adversary, rule, *max(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Play all adversaries against all rules; exit code 1 if a filter is exceeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--trials", type=int, default=1_000_000)
    parser.add_argument("--json", nargs="?", const="-", help="print, or write, the figures as JSON")
    chosen = parser.parse_args(arguments)
    found = [estimate(a, rule, chosen.trials) for rule in RULES for a in ADVERSARIES]
    held = all(one.holds for one in found if one.rule != "joint")
    exceeded = any(not one.holds for one in found if one.rule == "joint")
    result: dict[str, Any] = {
        "epsilon": EPSILON,
        "delta": DELTA,
        "trials": chosen.trials,
        "estimates": [asdict(one) | {"holds": one.holds} for one in found],
        "filters_hold": held,
        "joint_is_exceeded": exceeded,
    }
    if chosen.json == "-":
        print(json.dumps(result, indent=1))
    else:
        if chosen.json:
            Path(chosen.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        _print(found)
    return 0 if held and exceeded else 1


def _print(found: Sequence[Estimate]) -> None:
    table = Table("rule", *ADVERSARIES, title=f"delta at epsilon = {EPSILON:g}; stated {DELTA:g}")
    for rule in RULES:
        cells = [
            f"{one.delta:.5f} ± {one.error:.5f}{'' if one.holds else ' EXCEEDED'}"
            for one in found
            if one.rule == rule
        ]
        table.add_row(rule, *cells)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
