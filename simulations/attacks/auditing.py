"""Membership: likelihood ratios, rates, areas, audited lower bounds, and what privacy allows at most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from dp_accounting.dp_event import DpEvent
from scipy.stats import beta, binom, rankdata

from privacy.accountants import make_accountant
from privacy.guarantee import Relation

Array = npt.NDArray[np.float64]


def lira_scores(included: npt.NDArray[np.bool_], losses: Array) -> Array:
    """Return log likelihood ratio of each text's logit score in each run, the other runs as shadow models.

    The score is log(p / (1 - p)) of the text's own label, Gaussian with a mean of its own with and
    without the text and variances that all texts share. (runs, m); zero where a text has no shadow
    run of a kind.
    """
    scores = -losses - np.log(-np.expm1(-np.maximum(losses, 1e-12)))
    result = np.zeros_like(scores)
    for run in range(len(scores)):
        rest = np.arange(len(scores)) != run
        means, spreads = [], []
        for kind in (included[rest], ~included[rest]):
            number = kind.sum(axis=0)
            mean = np.where(kind, scores[rest], 0).sum(axis=0) / np.maximum(number, 1)
            squares = np.where(kind, (scores[rest] - mean) ** 2, 0).sum()
            freedom = max(1, int(np.maximum(number - 1, 0).sum()))
            # a mean of few shadow runs is uncertain itself
            spreads.append((squares / freedom + 1e-12) * (1 + 1 / np.maximum(number, 1)))
            means.append(np.where(number > 0, mean, np.nan))
        logs = [
            -((scores[run] - mean) ** 2) / (2 * spread) - 0.5 * np.log(spread)
            for mean, spread in zip(means, spreads, strict=True)
        ]
        result[run] = np.nan_to_num(logs[0] - logs[1], nan=0.0)
    return result


def area_under_curve(members: Array, others: Array) -> tuple[float, float]:
    """Return AUC (ties count half) of scores that are larger for members, with DeLong's standard error.

    DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two or more correlated receiver
    operating characteristic curves".

    Raises:
        ValueError: fewer than two scores of a kind.
    """
    m, n = len(members), len(others)
    if min(m, n) < 2:
        raise ValueError(f"Expected at least 2 members and 2 others, got {m} and {n}")
    ranks = rankdata(np.concatenate([members, others]))
    of_members = (ranks[:m] - rankdata(members)) / n
    of_others = 1 - (ranks[m:] - rankdata(others)) / m
    error = math.sqrt(of_members.var(ddof=1) / m + of_others.var(ddof=1) / n)
    return float(of_members.mean()), error


def true_positive_rate(
    members: Array, others: Array, rate: float, confidence: float = 0.95
) -> dict[str, float]:
    """Return the TPR at the threshold with a false positive rate of at most ``rate``.

    Returns:
        ``tpr``, its Clopper-Pearson interval ``low`` and ``high`` at that threshold, and the ``fpr``
        reached there with its upper limit ``fpr_high``.
    """
    threshold = threshold_of(others, rate)
    hits, false = int((members > threshold).sum()), int((others > threshold).sum())
    low, high = clopper_pearson(hits, len(members), confidence)
    return {
        "tpr": hits / len(members),
        "low": low,
        "high": high,
        "fpr": false / len(others),
        "fpr_high": clopper_pearson(false, len(others), confidence)[1],
    }


def threshold_of(others: Array, rate: float) -> float:
    """Return the smallest threshold that at most a share ``rate`` of the others lies above."""
    allowed = math.floor(rate * len(others) + 1e-9)
    return float(np.sort(others)[::-1][allowed]) if allowed < len(others) else -math.inf


def clopper_pearson(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval for a probability (Clopper and Pearson 1934)."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
    return low, high


def audited_epsilon(
    scores: Array,
    included: npt.NDArray[np.bool_],
    delta: float,
    confidence: float = 0.95,
    shares: Sequence[float] = (0.1, 0.3, 1.0),
) -> float:
    """Return the lower confidence bound of epsilon from guesses about many examples at once.

    Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run", theorem 5.2: each
    of m examples was included by a fair coin of its own; the auditor guesses ``in`` for the highest
    scores and ``out`` for the lowest, as many of each, and abstains on the rest. Under (epsilon,
    delta)-DP (zero-out) the number of right guesses is, up to a term in delta, at most
    binomial with probability e^epsilon / (1 + e^epsilon): the bound inverts that test, as Clopper and
    Pearson do for a coin. It does not need independent examples. Runs on disjoint records are one
    mechanism with the same (epsilon, delta), so their examples may be pooled.

    Args:
        scores: (m,) larger where the auditor believes in membership; made from the outputs alone.
        included: (m,) the coins.
        shares: of examples guessed about; fixed beforehand, the confidence is divided among them.

    Raises:
        ValueError: shapes differ.
    """
    if scores.shape != included.shape or scores.ndim != 1:
        raise ValueError(f"Expected equal shapes (m,), got {scores.shape} and {included.shape}")
    order = np.argsort(-scores, kind="stable")
    alpha = (1 - confidence) / len(shares)
    best = 0.0
    for part in shares:
        half = max(1, int(part * len(scores) / 2))
        right = int(included[order[:half]].sum() + (~included[order[-half:]]).sum())
        best = max(best, _smallest_plausible(len(scores), 2 * half, right, delta, alpha))
    return best


def _smallest_plausible(m: int, guesses: int, right: int, delta: float, alpha: float) -> float:
    low, high = 0.0, 1.0
    if audit_p_value(m, guesses, right, 0.0, delta) > alpha:
        return 0.0
    while audit_p_value(m, guesses, right, high, delta) <= alpha and high < 64:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        if audit_p_value(m, guesses, right, middle, delta) <= alpha:
            low = middle
        else:
            high = middle
    return low


def audit_p_value(m: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound on the probability of at least ``right`` right guesses under (epsilon, delta)-DP.

    Theorem 5.2 of Steinke et al. 2023 (their appendix D gives this computation).
    """
    q = 1 / (1 + math.exp(-epsilon))
    below = np.cumsum(
        binom.pmf(np.arange(right - 1, -1, -1), guesses, q)
    )  # P[right > W >= right - i]
    steepest = float(np.max(below / np.arange(1, right + 1), initial=0.0))
    return min(1.0, float(binom.sf(right - 1, guesses, q)) + 2 * m * delta * steepest)


def greatest_rates(events: Mapping[DpEvent, int], rates: Array) -> Array:
    """Return the theoretical upper bound of the TPR at each FPR, whatever the attack, from the run's events.

    (epsilon, delta)-DP gives TPR <= e^epsilon FPR + delta and TPR <= 1 - e^-epsilon (1 - delta - FPR)
    (Kairouz et al. 2015); the minimum over the whole curve delta(epsilon) of the PLD accountant, whose
    deltas are upper bounds. Relation zero-out.
    """
    accountant = make_accountant("pld", Relation.ZERO_OUT)
    best = np.ones_like(rates)
    for epsilon in np.concatenate([[0.0], np.geomspace(1e-3, 30.0, 60)]):
        delta = accountant.delta(events, float(epsilon))
        best = np.minimum(best, math.exp(epsilon) * rates + delta)
        best = np.minimum(best, 1 - math.exp(-epsilon) * (1 - delta - rates))
    return np.clip(best, 0.0, 1.0)


def greatest_area(events: Mapping[DpEvent, int]) -> float:
    """Return the theoretical upper bound of the AUC: the area under :func:`greatest_rates`, rounded up."""
    rates = np.concatenate([[0.0], np.geomspace(1e-6, 1.0, 400)])
    heights = greatest_rates(events, rates)
    # upper sums: the curve rises, so each strip is at most as high as at its right end
    return float(min(1.0, np.sum(np.diff(rates) * heights[1:])))
