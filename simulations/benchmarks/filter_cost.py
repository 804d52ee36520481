"""Compute the cost of a filter: the noise of 1, 2 and 5 equal runs on one ledger.

    python -m simulations.benchmarks.filter_cost [--json [OUT]]

The least noise multiplier with which n equal runs keep to one budget, by tight composition of all of them ("joint": right
only where all runs were fixed beforehand), by the filter on squared mu, by the Renyi filter, and by the one of the two
that :func:`privacy.plan_filter.choose` takes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from privacy.accountants import make_accountant
from privacy.calibration import calibrate_noise_multiplier, solve_decreasing
from privacy.events.constructors import dp_sgd
from privacy.events.multiset import multiset
from privacy.guarantee import Relation
from privacy.plan_filter import Terms, choose, gaussian_terms, renyi_terms, used

DELTA = 1e-5
PLANS = ((0.02, 200), (0.05, 200), (0.05, 1000))
"""(sampling rate, steps) of one run."""
EPSILONS = (3.0, 1.0)
RUNS = (1, 2, 5)
RULES = ("joint", "gdp", "renyi", "chosen")
RELATION = Relation.ADD_OR_REMOVE_ONE


@dataclass(frozen=True)
class Cost:
    """The noise multiplier of each of `runs` equal runs of `steps` steps, by rule."""

    epsilon: float
    rate: float
    steps: int
    runs: int
    noise: dict[str, float]


def least_noise(rule: str, epsilon: float, rate: float, steps: int, runs: int) -> float:
    """Return the least noise multiplier, within 0.1 % of what it costs, of so many equal runs."""
    joint = calibrate_noise_multiplier(
        epsilon=epsilon, delta=DELTA, sampling_rate=rate, steps=steps * runs
    ).noise_multiplier
    if rule == "joint" or runs == 1:
        return joint

    def excess(noise: float) -> float:
        """Return a value that is at most 1 if the runs are admitted."""
        plan = multiset(dp_sgd(rate, noise, steps))
        alone = make_accountant("pld").epsilon(plan, DELTA) / epsilon
        terms: Terms | None
        if rule == "gdp":
            terms = gaussian_terms(plan, epsilon, DELTA, RELATION)
        elif rule == "renyi":
            terms = renyi_terms(plan, epsilon, DELTA, RELATION)
        else:
            terms = choose(plan, epsilon, DELTA, RELATION)
        if terms is None or terms.limit == 0:
            return max(alone, 1e9)
        return max(alone, used(terms, [plan] * (runs - 1), RELATION) / terms.limit)

    return solve_decreasing(excess, 1.0, 1e-3, joint * 0.98, joint * 3)[0]


def costs() -> list[Cost]:
    """Return all rows of the table."""
    return [
        Cost(
            epsilon,
            rate,
            steps,
            runs,
            {rule: least_noise(rule, epsilon, rate, steps, runs) for rule in RULES},
        )
        for epsilon in EPSILONS
        for rate, steps in PLANS
        for runs in RUNS
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--json", nargs="?", const="-", help="print, or write, the figures as JSON")
    chosen = parser.parse_args(arguments)
    found = costs()
    text = json.dumps([asdict(cost) for cost in found], indent=1)
    if chosen.json == "-":
        print(text)
        return 0
    if chosen.json:
        Path(chosen.json).write_text(text + "\n", encoding="utf-8")
    table = Table("epsilon", "rate", "steps", "runs", *RULES, title=f"noise multiplier, {DELTA=:g}")
    for cost in found:
        joint = cost.noise["joint"]
        cells = [f"{cost.noise[rule]:.4f} ({cost.noise[rule] / joint:.3f})" for rule in RULES]
        table.add_row(
            f"{cost.epsilon:g}", f"{cost.rate:g}", f"{cost.steps}", f"{cost.runs}", *cells
        )
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
