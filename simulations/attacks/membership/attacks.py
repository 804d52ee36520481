"""Shared parts of the membership experiments: losses of texts, attacks on them, intervals over runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import t as student
from scipy.stats import ttest_rel
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.tasks.base import expand_params
from fedllm.training.tunable import Tunable
from simulations.attacks import auditing, show
from simulations.attacks.scene import MICRO_BATCH

RATES = (0.01, 0.05)
_DRAWS = 2000


def flipped(feature: Feature, classes: int) -> Feature:
    """Return the same text with another label."""
    return replace(feature, target=(int(feature.target or 0) + 1) % classes)


def losses(tunable: Tunable, params: Mapping[str, Tensor], features: Sequence[Feature]) -> Tensor:
    """Return the loss of each text, (n,) float64."""
    found = torch.zeros(len(features), dtype=torch.float64)
    with torch.no_grad():
        for group in tunable.task.batches(features, MICRO_BATCH):
            batch = tunable.task.collate([features[i] for i in group])
            found[group] = tunable.losses(expand_params(params, len(group)), batch).double().cpu()
    return found


def attack(included: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Return AUC as mean and standard error over runs, and TPR at fixed FPR over all runs together."""
    return {
        "auc": show.mean_and_error(areas(included, scores)),
        "tpr": {
            str(rate): auditing.true_positive_rate(scores[included], scores[~included], rate)
            for rate in RATES
        },
    }


def roc(scores: np.ndarray, included: np.ndarray) -> list[list[float]]:
    """Return FPR and TPR of every threshold, for the figure."""
    order = np.argsort(-scores.ravel())
    member = included.ravel()[order]
    false, hits = np.cumsum(~member) / (~member).sum(), np.cumsum(member) / member.sum()
    return [[0.0, *false.tolist()], [0.0, *hits.tolist()]]


def areas(included: npt.NDArray[np.bool_], scores: np.ndarray) -> list[float]:
    """Return AUC of each run: its members against its other texts; (runs, m) each, larger for members."""
    return [
        auditing.area_under_curve(s[chosen], s[~chosen])[0]
        for s, chosen in zip(scores, included, strict=True)
    ]


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the mean over runs and Student's interval for it.

    Raises:
        ValueError: fewer than two runs.
    """
    if len(values) < 2:
        raise ValueError(f"Expected at least 2 runs for an interval, got {len(values)}")
    mean, error = show.mean_and_error(values)
    half = float(student.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def paired(values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Return the mean difference of two rows of the same runs (texts, coins), its interval, and p of a paired t-test."""
    differences = [a - b for a, b in zip(values, others, strict=True)]
    mean, low, high = interval(differences)
    # no difference in any run: nothing speaks against equality
    p = float(ttest_rel(values, others).pvalue) if any(differences) else 1.0
    return {"difference": mean, "low": low, "high": high, "p": p}


def rate_over_runs(
    included: npt.NDArray[np.bool_], scores: np.ndarray, rate: float, rng: np.random.Generator
) -> dict[str, float]:
    """Return the TPR over all runs, at a threshold with a false positive rate of at most ``rate``.

    The interval is the bootstrap's over runs (percentiles, 95 %, threshold chosen again each time): texts of
    one run are not independent, runs are (LiRA's share shadow models, which it ignores).
    """

    def tpr(rows: np.ndarray) -> float:
        kind, value = included[rows], scores[rows]
        return float((value[kind] > auditing.threshold_of(value[~kind], rate)).mean())

    runs = len(included)
    draws = [tpr(rng.integers(0, runs, runs)) for _ in range(_DRAWS)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"tpr": tpr(np.arange(runs)), "low": float(low), "high": float(high)}
