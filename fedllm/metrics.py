"""Metrics of classification, regression, tags, language modelling and generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

SHOWN = (
    *(
        "loss",
        "accuracy",
        "micro_f1",
        "macro_f1",
        "perplexity",
        "bleu",
        "rouge_l",
        "mse",
        "mae",
        "pearson",
        "spearman",
    ),
    *("tag_accuracy", "entity_precision", "entity_recall", "entity_f1"),
)
"""Metrics of all tasks, in the order in which they are shown."""


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


def multilabel_scores(
    predicted: Sequence[Sequence[bool]], expected: Sequence[Sequence[bool]]
) -> dict[str, float]:
    """Return ``accuracy`` (share of examples whose labels are all right: subset accuracy), ``micro_f1``, ``macro_f1``.

    Args:
        predicted, expected: for each example, whether it has each of the labels.

    F1 is 2 TP / (2 TP + FP + FN), and 0 where that is 0 / 0: of all decisions together, and as the mean over labels.
    Raises ValueError for unequal lengths or none.
    """
    _check_pairs("predicted", predicted, "expected", expected)
    columns = list(zip(*expected, strict=True))
    guesses = list(zip(*predicted, strict=True))
    hits = [
        sum(p and e for p, e in zip(guess, column, strict=True))
        for guess, column in zip(guesses, columns, strict=True)
    ]
    named = [sum(guess) + sum(column) for guess, column in zip(guesses, columns, strict=True)]
    each = [2 * hit / count if count else 0.0 for hit, count in zip(hits, named, strict=True)]
    right = sum(list(p) == list(e) for p, e in zip(predicted, expected, strict=True))
    return {
        "accuracy": right / len(expected),
        "micro_f1": 2 * sum(hits) / sum(named) if sum(named) else 0.0,
        "macro_f1": sum(each) / len(each),
    }


def regression_scores(predicted: Sequence[float], expected: Sequence[float]) -> dict[str, float]:
    """Return ``mse``, ``mae``, and where both vary the correlations ``pearson`` and ``spearman`` (by scipy).

    Raises ValueError for unequal lengths or none.
    """
    _check_pairs("predicted", predicted, "expected", expected)
    errors = [p - e for p, e in zip(predicted, expected, strict=True)]
    found = {
        "mse": sum(error * error for error in errors) / len(errors),
        "mae": sum(map(abs, errors)) / len(errors),
    }
    if len(set(predicted)) > 1 and len(set(expected)) > 1:
        from scipy.stats import pearsonr, spearmanr

        found["pearson"] = float(pearsonr(predicted, expected).statistic)
        found["spearman"] = float(spearmanr(predicted, expected).statistic)
    return found


def tag_scores(
    predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """Return ``tag_accuracy``, and for tags of entities ``entity_precision``, ``entity_recall`` and ``entity_f1``.

    Tags are of entities where each of ``labels`` is ``O``, ``B-...`` or ``I-...``. An entity is right where its first
    word, its last word and its type are (as in the CoNLL tasks; Tjong Kim Sang and Buchholz 2000). A share of nothing is 0.
    Raises ValueError for unequal lengths or no word at all.
    """
    _check_pairs("predicted", predicted, "expected", expected)
    words = [
        pair for p, e in zip(predicted, expected, strict=True) for pair in zip(p, e, strict=True)
    ]
    if not words:
        raise ValueError("Expected at least one word with a tag, got none")
    found = {"tag_accuracy": sum(p == e for p, e in words) / len(words)}
    if any(label != "O" and label[:2] not in ("B-", "I-") for label in labels):
        return found
    given = {(row, *entity) for row, tags in enumerate(predicted) for entity in entities(tags)}
    wanted = {(row, *entity) for row, tags in enumerate(expected) for entity in entities(tags)}
    right = len(given & wanted)
    return found | {
        "entity_precision": right / len(given) if given else 0.0,
        "entity_recall": right / len(wanted) if wanted else 0.0,
        "entity_f1": 2 * right / (len(given) + len(wanted)) if given or wanted else 0.0,
    }


def entities(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return (first word, last word, type) of each entity of a sentence (IOB2).

    An entity begins at ``B-X``, and at an ``I-X`` that does not continue one of type X (which a model may write): so
    count the script conlleval and the package seqeval by default.
    """
    found: list[tuple[int, int, str]] = []
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        head, _, own = tag.partition("-")
        if kind and not (head == "I" and own == kind):
            found.append((start, place - 1, kind))
            kind = ""
        if not kind and head in ("B", "I"):
            start, kind = place, own
    return found


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
