"""The strength of a guarantee, as a verdict in plain words: a proven epsilon of 1000 protects nobody.

The limits of epsilon are those of Ponomareva et al. (2023, "How to DP-fy ML", section 5.2.1): up to 1 a strong guarantee,
up to 10 a reasonable one. Beyond 20 a
test may recognise nearly nine used records of ten with one false alarm in a hundred: the Gaussian mechanism of epsilon = 20 at
delta = 1e-5 has mu = 3.4, and Phi(Phi^-1(0.01) + 3.4) = 0.86. Delta times the number of records is how
many records may be published whole, on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from fedllm.report.guarantee import STATED, Headline, shown
from fedllm.report.schema_base import Part, Real

Strength = Literal["strong", "moderate", "weak", "none"]
ORDER: tuple[Strength, ...] = ("strong", "moderate", "weak", "none")
VERDICTS: Mapping[Strength, str] = {
    "strong": "Strong protection",
    "moderate": "Moderate protection",
    "weak": "Weak protection",
    "none": "No meaningful protection",
}
STRONG, MODERATE, WEAK = 1.0, 10.0, 20.0
"""Largest epsilon of each verdict."""
FEW, ONE = 0.1, 1.0
"""Delta times the number of records above which protection is weak, and from which there is none."""


class StrengthPart(Part):
    """The verdict on a guarantee."""

    level: Literal["strong", "moderate", "weak", "none"]
    words: str
    records: int | None = Field(
        description="Units of the largest silo, or of the run; null where private."
    )
    published: Real | None = Field(description="Delta times records.")


def strength_of(epsilon: float, published: float | None) -> Strength:
    """Return the verdict on an epsilon, and on delta times the number of records (None where that is private)."""
    limits = (STRONG, MODERATE, WEAK)
    place = next((i for i, limit in enumerate(limits) if epsilon <= limit), len(limits))
    if published is not None and published > FEW:
        place = max(place, ORDER.index("none" if published >= ONE else "weak"))
    return ORDER[place]


def strength_part(
    statement: Headline, meaning: Mapping[str, Any] | None, sizes: Mapping[str, int | None]
) -> dict[str, Any] | None:
    """Return the verdict on a statement; None where it states no finite epsilon.

    Args:
        meaning: least share that a test misses, at its rate of false alarms, where it was computed.
        sizes: number of examples of each silo, None where it is private.
    """
    if statement.level not in STATED:
        return None
    known = [size for size in sizes.values() if isinstance(size, int)]
    by_example = statement.unit == "example"
    records = (max(known) if known else None) if by_example else (len(sizes) or None)
    published = None if records is None else statement.delta * records
    level = strength_of(statement.epsilon, published)
    words = f"{VERDICTS[level]}: epsilon = {shown(statement.epsilon)}. "
    words += f"{found_words(meaning, statement.unit)} " if meaning is not None else ""
    if published is not None and published > FEW:
        unit = "records of the largest silo" if by_example else "silos"
        words += (
            f"Delta = {statement.delta:g} alone allows to publish {published:.3g} of the {records} {unit} whole, "
            "on average. "
        )
    return {"level": level, "words": words.strip(), "records": records, "published": published}


def found_words(meaning: Mapping[str, Any], unit: str) -> str:
    """Say how many used records (or silos) a test recognises at most, rounded up."""
    units = "records" if unit == "example" else "silos"
    alarms = meaning["false_alarms"]
    found = min(100.0, math.ceil(1000 * (1 - meaning["missed"]) - 1e-9) / 10)
    if found >= 100:
        return (
            f"Whoever accuses {alarms:.0%} of the {units} that were not used may recognise every one that was: the number "
            "rules nothing out."
        )
    return (
        f"Whoever accuses {alarms:.0%} of the {units} that were not used recognises at most {found:g}% of those that "
        f"were; by guessing, {alarms:.0%}."
    )


def rated(statement: Headline, strength: Mapping[str, Any] | None) -> Headline:
    """Return the statement, which begins with its verdict where protection is weak or none."""
    if strength is None or strength["level"] not in ("weak", "none"):
        return statement
    verdict = VERDICTS[strength["level"]].upper()
    return replace(statement, sentence=f"{verdict}. {statement.sentence}")
