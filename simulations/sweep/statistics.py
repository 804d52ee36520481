"""Statistics of a sweep: spread, paired tests, and Holm's correction."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Answers = Sequence[tuple[str, bool]]
"""(key of the example, whether the answer was right) of one run."""


@dataclass(frozen=True)
class Summary:
    """Summary of one quantity over seeds.

    Attributes:
        spread: sample standard deviation (n - 1); None for one value.
        error: standard error of the mean; None for one value.
    """

    n: int
    mean: float
    spread: float | None
    error: float | None
    smallest: float
    largest: float


@dataclass(frozen=True)
class Comparison:
    """A paired comparison: arm minus baseline.

    Attributes:
        n: pairs.
        difference: mean of the differences.
        error: its standard error; None for one pair.
        low, high: 95 % confidence interval by Student's t; None for one pair.
        p: two-sided p of the paired t-test; None if there is none (one pair, or no spread).
    """

    n: int
    difference: float
    error: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def summary(values: Iterable[float]) -> Summary:
    """Return the mean and spread.

    Raises:
        ValueError: no values.
    """
    found = np.asarray(list(values), dtype=float)
    if found.size == 0:
        raise ValueError("Expected at least one value, got none")
    spread = float(found.std(ddof=1)) if found.size > 1 else None
    error = None if spread is None else spread / math.sqrt(found.size)
    return Summary(
        found.size, float(found.mean()), spread, error, float(found.min()), float(found.max())
    )


def paired(arm: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison | None:
    """Return the paired t-test over the keys that both have (seeds); None if they have none in common.

    It tells whether the difference is larger than what training by another seed (partition, sampling,
    noise) brings, on these evaluation examples. Few seeds tell little: the differences are taken to be
    normal, and with three pairs |t| must exceed 4.3 for p < 0.05.
    """
    common = sorted(arm.keys() & baseline.keys())
    return _test([arm[key] - baseline[key] for key in common]) if common else None


def paired_examples(
    arm: Mapping[int, Answers], baseline: Mapping[int, Answers]
) -> Comparison | None:
    """Return the paired t-test over evaluation examples, of the share of seeds that got each right.

    An example counts once however many seeds judged it: answers to one example by models of several
    seeds are not independent. It tells whether these models would differ on other examples of the same
    kind, and nothing about other seeds. None where seeds or examples in common are missing.
    """
    ours: dict[str, list[float]] = defaultdict(list)
    theirs: dict[str, list[float]] = defaultdict(list)
    for seed in arm.keys() & baseline.keys():
        for found, answers in ((ours, arm[seed]), (theirs, baseline[seed])):
            for key, right in answers:
                found[key].append(float(right))
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return None
    return _test([float(np.mean(ours[key]) - np.mean(theirs[key])) for key in common])


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down adjusted p-values (Holm 1979); None stays None and is not counted."""
    order = sorted((p, place) for place, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


def gap_closed(arm: float, baseline: float, reference: float) -> float | None:
    """Return (arm - baseline) / (reference - baseline); None if there is no gap."""
    gap = reference - baseline
    return None if gap == 0 else (arm - baseline) / gap


def _test(differences: Sequence[float]) -> Comparison:
    found = np.asarray(differences, dtype=float)
    mean = float(found.mean())
    if found.size < 2:
        return Comparison(int(found.size), mean)
    error = float(stats.sem(found))
    if error == 0:
        return Comparison(int(found.size), mean, 0.0, mean, mean, None)
    test = stats.ttest_1samp(found, 0.0)
    interval = test.confidence_interval(0.95)
    return Comparison(
        int(found.size), mean, error, float(interval.low), float(interval.high), float(test.pvalue)
    )
