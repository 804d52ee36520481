"""Which noise a few numbers get that are released beside much else: the search's winner, in the whole plan.

A number alone is best served by other noise than Gaussian (docs/noise.md); a number beside the steps of DP-SGD
hardly ever. What composes with many releases counts by its Fisher information, by which the Gaussian has the least
variance: Laplace noise then needs twice the variance. So families are compared at what the *whole plan* costs, not at what
the numbers cost alone: the noise that is chosen never costs the plan more than the Gaussian it stands in for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dp_accounting.dp_event import DpEvent

from privacy.accountants import make_accountant
from privacy.event_counts import multiset
from privacy.event_json import event_to_json
from privacy.events import discrete_gaussian
from privacy.noise_question import SMALLEST_DELTA, NoiseQuestion
from privacy.noise_search import search_noise
from privacy.scalar_noise import ScalarNoise

FAMILIES = ("laplace", "exponential-power", "staircase")
LEAST_GAIN = 0.02
"""Relative gain in standard deviation below which the discrete Gaussian stays: it is exact, and whole."""


@dataclass(frozen=True)
class ScalarChoice:
    """The noise of each number of sensitivity 1.

    Attributes:
      noise: None: discrete Gaussian noise of `sigma`.
      sigma: Of the discrete Gaussian noise that the choice stands in for.
      ratios: Standard deviation over `sigma`, at equal cost of the whole plan, of each family tried.
      epsilon: What the whole plan costs, by the PLD accountant.
    """

    noise: ScalarNoise | None
    sigma: float
    ratios: dict[str, float]
    epsilon: float


def choose_noise(
    *,
    sigma: float,
    count: int,
    beside: Mapping[DpEvent, int],
    delta: float,
    family: str = "auto",
    cache_dir: Path | None = None,
) -> ScalarChoice:
    """The noise of least standard deviation with which the plan costs what it costs with the Gaussian.

    Args:
      sigma: Parameter of the discrete Gaussian noise that sets the cost.
      count: How many numbers are released, each of sensitivity 1 and without sampling.
      beside: All else that the plan releases.
      delta: Of the plan.
      family: `auto`, `discrete-gaussian`, or one of `FAMILIES`, in the amount that costs as much.
      cache_dir: As for `search_noise`.

    Raises:
      ValueError: A parameter is out of range.

    Guarantee: whatever is chosen, its event is `scalar_noise(noise)` (or `discrete_gaussian(sigma)`), and with
    it the plan is (`epsilon`, delta)-DP under zero-out.
    """
    if family not in ("auto", "discrete-gaussian", *FAMILIES):
        raise ValueError(
            f"Expected auto, discrete-gaussian or one of {', '.join(FAMILIES)}, got family={family!r}"
        )
    others = multiset(beside)
    plan = others + multiset({discrete_gaussian(sigma): count})
    target = make_accountant("pld").epsilon(plan, delta)
    stays = ScalarChoice(None, sigma, {}, target)
    known = 0 < target < math.inf and delta >= SMALLEST_DELTA and count > 0
    if family == "discrete-gaussian" or not known:
        return stays
    question = NoiseQuestion(
        epsilon=target,
        delta=delta,
        steps=count,
        beside=tuple(sorted((event_to_json(event), n) for event, n in others.items())),
    )
    names = FAMILIES if family == "auto" else (family,)
    found = search_noise(question, cache_dir, families=names, light=True)
    ratios = {name: found.candidates[name].noise.std / sigma for name in names}
    best = min(names, key=lambda name: ratios[name])
    if family == "auto" and ratios[best] > 1 - LEAST_GAIN:
        return ScalarChoice(None, sigma, ratios, target)
    chosen = found.candidates[best]
    return ScalarChoice(chosen.noise, sigma, ratios, chosen.epsilon)
