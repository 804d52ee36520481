"""Metrics of classification, language modelling and generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def accuracy(predicted: Sequence[int], expected: Sequence[int]) -> float:
    """Return the share of class indices that agree, in [0, 1]. Raises ValueError for unequal lengths or none."""
    _check_pairs("predicted", predicted, "expected", expected)
    return sum(p == e for p, e in zip(predicted, expected, strict=True)) / len(expected)


def macro_f1(
    predicted: Sequence[int], expected: Sequence[int], n_classes: int | None = None
) -> float:
    """Return the unweighted mean of the classes' F1, in [0, 1].

    F1 of a class is 2 TP / (2 TP + FP + FN), and 0 where that is 0 / 0. With ``n_classes`` the mean
    is over classes 0 .. n_classes - 1, so that runs with the same classes compare; without it, over
    the classes that occur in either argument (scikit-learn's default).
    Raises ValueError for unequal lengths, none, or an index outside ``n_classes``.
    """
    _check_pairs("predicted", predicted, "expected", expected)
    present = sorted({int(x) for x in predicted} | {int(x) for x in expected})
    if n_classes is not None:
        if present[0] < 0 or present[-1] >= n_classes:
            outside = present[0] if present[0] < 0 else present[-1]
            raise ValueError(f"Expected class indices in 0..{n_classes - 1}, got {outside}")
        present = list(range(n_classes))
    true_positives = dict.fromkeys(present, 0)
    counts = dict.fromkeys(present, 0)
    for p, e in zip(predicted, expected, strict=True):
        true_positives[int(p)] += int(p == e)
        counts[int(p)] += 1
        counts[int(e)] += 1
    scores = [2 * true_positives[c] / counts[c] if counts[c] else 0.0 for c in present]
    return sum(scores) / len(scores)


def perplexity(sum_nll: float, n_tokens: int) -> float:
    """Return exp(sum_nll / n_tokens): ``sum_nll`` in nats over ``n_tokens`` predicted tokens.

    Sum over the whole data before calling: a mean of batches' perplexities is something else.
    Infinite where the exponential overflows; NaN stays NaN. Raises ValueError for n_tokens < 1.
    """
    if n_tokens < 1:
        raise ValueError(f"Expected n_tokens >= 1, got n_tokens={n_tokens}")
    try:
        return math.exp(sum_nll / n_tokens)
    except OverflowError:
        return math.inf


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return corpus BLEU in [0, 100] by sacrebleu (Post 2018): 13a tokens, exponential smoothing.

    ``references[i]`` are the one or more references of ``hypotheses[i]``; their number may differ.
    Raises ValueError for unequal lengths, none, or an example without a reference.
    """
    _check_references(hypotheses, references)
    from sacrebleu.metrics.bleu import BLEU

    most = max(len(group) for group in references)
    # sacrebleu wants one stream a reference number; None says that an example has no such reference.
    streams: Any = [
        [group[number] if number < len(group) else None for group in references]
        for number in range(most)
    ]
    return float(BLEU().corpus_score(list(hypotheses), streams).score)


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean ROUGE-L F1 in [0, 1] by rouge-score (Lin 2004), without stemming.

    An example counts with its best reference. Sentence-level ROUGE-L over the whole text, not
    ROUGE-Lsum. rouge-score keeps only a-z and 0-9: other scripts score 0.
    Raises ValueError for unequal lengths, none, or an example without a reference.
    """
    _check_references(hypotheses, references)
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    best = [
        max(scorer.score(reference, hypothesis)["rougeL"].fmeasure for reference in group)
        for hypothesis, group in zip(hypotheses, references, strict=True)
    ]
    return float(sum(best) / len(best))


def _check_pairs(
    name: str, values: Sequence[object], other_name: str, others: Sequence[object]
) -> None:
    if len(values) != len(others) or len(values) == 0:
        raise ValueError(
            f"Expected equally many (at least one) {name} and {other_name}, got {len(values)} and "
            f"{len(others)}"
        )


def _check_references(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if isinstance(hypotheses, str) or any(isinstance(group, str) for group in references):
        raise ValueError("Expected a list of texts and a list of lists of references, got a string")
    _check_pairs("hypotheses", hypotheses, "reference lists", references)
    for row, group in enumerate(references):
        if len(group) == 0:
            raise ValueError(
                f"Expected at least one reference an example, got none for example {row}"
            )
