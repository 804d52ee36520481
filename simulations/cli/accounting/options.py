"""Options of the accounting commands, with their ranges."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated

import typer

from simulations.output import require

APPROXIMATION = "approximation, not a bound"
BOUND = "upper bound"


class RelationName(StrEnum):
    """Neighbouring relations, as options."""

    ZERO_OUT = "zero-out"
    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    REPLACE_ONE = "replace-one"


class UnitName(StrEnum):
    """Privacy units, as options."""

    EXAMPLE = "example"
    CLIENT = "client"


def _checked_delta(delta: float | None) -> float | None:
    """Return delta after a check of its range."""
    if delta is not None:
        require("--delta", delta, 0 < delta < 1, "a number above 0 and below 1")
    return delta


def _checked_rate(rate: float | None) -> float | None:
    """Return the sampling rate after a check of its range."""
    if rate is not None:
        require("--sample-rate", rate, 0 < rate <= 1, "a number above 0 and at most 1")
    return rate


def _checked_steps(steps: int | None) -> int | None:
    """Return the number of steps after a check of its range."""
    if steps is not None:
        require("--steps", steps, steps >= 1, "a whole number >= 1")
    return steps


def _checked_copies(copies: int) -> int:
    """Return the number of copies after a check of its range."""
    from privacy.copies import MOST

    require("--copies", copies, 1 <= copies <= MOST, f"a whole number from 1 to {MOST}")
    return copies


def _checked_noise(noise: float | None) -> float | None:
    """Return the noise multiplier after a check of its range."""
    if noise is not None:
        good = noise > 0 and math.isfinite(noise)
        require("--noise-multiplier", noise, good, "a finite number > 0")
    return noise


Delta = Annotated[
    float | None,
    typer.Option(
        callback=_checked_delta, help="Delta, above 0 and below 1; default: the ledger's."
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        callback=_checked_rate, help="Sampling rate: probability of each record to be in a step."
    ),
]
Steps = Annotated[int | None, typer.Option(callback=_checked_steps, help="Number of DP-SGD steps.")]
Noise = Annotated[
    float | None,
    typer.Option(
        callback=_checked_noise,
        help="Noise multiplier: standard deviation of the noise over the clipping norm.",
    ),
]
Copies = Annotated[
    int,
    typer.Option(
        callback=_checked_copies,
        help="Number of copies of a record in one party's data; epsilon covers all of them together.",
    ),
]
Opponent = Annotated[
    str,
    typer.Option(
        help="Adversary: outsider, sum-only or sum-only:m (learns sums over silos, with m of them), server (sees every message), or "
        "colluding:m (with m silos)."
    ),
]
