"""Metrics against values worked out by hand and against the libraries themselves."""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from fedllm.metrics import (
    accuracy,
    corpus_bleu,
    entities,
    macro_f1,
    multilabel_scores,
    perplexity,
    regression_scores,
    rouge_l,
    tag_scores,
)

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("FEDLLM_TEST_DATA", ROOT.parent / "shared" / "data"))


def test_accuracy_by_hand() -> None:
    assert accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75
    assert accuracy([1], [0]) == 0.0


def test_macro_f1_by_hand() -> None:
    # class 0: TP 2 FP 1 FN 1 -> 2/3; class 1: TP 1 FP 1 FN 1 -> 1/2; class 2: TP 1 FP 1 FN 1 -> 1/2
    expected = [0, 0, 0, 1, 1, 2, 2]
    predicted = [0, 0, 1, 1, 2, 2, 0]
    assert macro_f1(predicted, expected) == pytest.approx(float(Fraction(5, 9)))
    assert macro_f1(predicted, expected, n_classes=4) == pytest.approx(float(Fraction(5, 12)))
    assert macro_f1([0, 0], [1, 1]) == 0.0
    assert macro_f1([1, 1], [1, 1]) == 1.0
    assert macro_f1([1, 1], [1, 1], n_classes=2) == 0.5


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_macro_f1_is_the_mean_of_harmonic_means(pairs: list[tuple[int, int]]) -> None:
    """Against the other form of F1: the harmonic mean of precision and recall."""
    predicted, expected = [p for p, _ in pairs], [e for _, e in pairs]
    scores = []
    for c in sorted(set(predicted) | set(expected)):
        hits = Fraction(sum(p == c == e for p, e in pairs))
        precision = hits / predicted.count(c) if c in predicted else Fraction(0)
        recall = hits / expected.count(c) if c in expected else Fraction(0)
        both = precision + recall
        scores.append(2 * precision * recall / both if both else Fraction(0))
    assert macro_f1(predicted, expected) == pytest.approx(float(sum(scores) / len(scores)))


def test_perplexity() -> None:
    assert perplexity(10 * math.log(7.0), 10) == pytest.approx(7.0)
    assert perplexity(0.0, 3) == 1.0
    assert perplexity(1e6, 1) == math.inf
    assert math.isnan(perplexity(math.nan, 1))


def test_bleu_by_hand() -> None:
    # 7 tokens against 7, the last differs: precisions 6/7, 5/6, 4/5, 3/4; their product is 3/7.
    hypothesis = "the cat sat on the mat today"
    reference = "the cat sat on the mat now"
    assert corpus_bleu([hypothesis], [[reference]]) == pytest.approx(100 * (3 / 7) ** 0.25)
    # All n-grams match and one of 6 tokens is missing: the brevity penalty alone.
    short = corpus_bleu(["the cat sat on the"], [["the cat sat on the mat"]])
    assert short == pytest.approx(100 * math.exp(1 - 6 / 5))
    # A second reference of the hypothesis's length lifts the penalty; n-grams may come from either.
    both = corpus_bleu(["the cat sat on the"], [["the cat sat on the mat", "a dog sat by it"]])
    assert both == pytest.approx(100.0)


def test_bleu_pools_counts_over_the_corpus() -> None:
    # Precisions (6+0)/(7+4), (5+0)/(6+3), (4+0)/(5+2), (3+0)/(4+1); lengths 11 and 11.
    hypotheses = ["the cat sat on the mat today", "one two three four"]
    references = [["the cat sat on the mat now"], ["five six seven eight"]]
    expected = 100 * (6 / 11 * 5 / 9 * 4 / 7 * 3 / 5) ** 0.25
    assert corpus_bleu(hypotheses, references) == pytest.approx(expected)


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence a c d: precision 3/4, recall 3/5, F1 2/3.
    assert rouge_l(["a b c d"], [["a c d e f"]]) == pytest.approx(2 / 3)
    assert rouge_l(["a b c d"], [["x", "a c d e f"]]) == pytest.approx(2 / 3)
    assert rouge_l(["a b c d", "x"], [["a c d e f"], ["y"]]) == pytest.approx(1 / 3)
    assert rouge_l(["same"], [["same"]]) == 1.0
    assert rouge_l([""], [["a"]]) == 0.0


@pytest.mark.skipif(
    not (DATA / "e2e").is_dir(), reason=f"no test data in {DATA}; set FEDLLM_TEST_DATA"
)
def test_generation_metrics_agree_with_the_libraries_on_e2e() -> None:
    """Uneven numbers of references, one held back as the hypothesis."""
    with gzip.open(DATA / "e2e" / "validation.jsonl.gz", "rt", encoding="utf-8") as file:
        groups = [json.loads(line)["refs"] for line in file]
    groups = [group for group in groups if len(group) > 1][:60]
    hypotheses, references = [g[0] for g in groups], [g[1:] for g in groups]
    assert len({len(group) for group in references}) > 1
    most = max(len(group) for group in references)
    streams: Any = [[g[k] if k < len(g) else None for g in references] for k in range(most)]
    direct = sacrebleu.corpus_bleu(hypotheses, streams).score
    assert corpus_bleu(hypotheses, references) == pytest.approx(direct)
    assert 10 < direct < 90
    scorer = RougeScorer(["rougeL"])
    best = [
        scorer.score_multi(group, text)["rougeL"].fmeasure
        for text, group in zip(hypotheses, references, strict=True)
    ]
    assert rouge_l(hypotheses, references) == pytest.approx(sum(best) / len(best))
    assert corpus_bleu(hypotheses, [[text] for text in hypotheses]) == pytest.approx(100.0)


@pytest.mark.parametrize("metric", [accuracy, macro_f1, corpus_bleu, rouge_l])
def test_empty_or_unequal_input_is_refused(metric: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match=r"at least one.*got 0 and 0"):
        metric([], [])
    unequal = ([1], [1, 2]) if metric in (accuracy, macro_f1) else (["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="got 1 and 2"):
        metric(*unequal)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="n_tokens=0"):
        perplexity(1.0, 0)
    with pytest.raises(ValueError, match=r"indices in 0\.\.1, got 2"):
        macro_f1([2], [0], n_classes=2)
    with pytest.raises(ValueError, match="got -1"):
        macro_f1([-1], [0], n_classes=2)
    for metric in (corpus_bleu, rouge_l):
        with pytest.raises(ValueError, match="none for example 1"):
            metric(["a", "b"], [["a"], []])
        with pytest.raises(ValueError, match="got a string"):
            metric(["a"], ["a"])


def test_labels_are_judged_one_by_one_and_together() -> None:
    expected = [[True, False, True], [False, False, False], [True, True, False]]
    predicted = [[True, False, False], [False, False, False], [True, True, True]]
    found = multilabel_scores(predicted, expected)
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert found["macro_f1"] == pytest.approx((1 + 1 + 0) / 3)
    nothing = multilabel_scores([[False]], [[False]])
    assert nothing == {"accuracy": 1.0, "micro_f1": 0.0, "macro_f1": 0.0}


def test_errors_and_correlations_of_numbers() -> None:
    found = regression_scores([1.0, 2.0, 4.0], [1.0, 3.0, 9.0])
    assert found["mse"] == pytest.approx(26 / 3)
    assert found["mae"] == pytest.approx(2.0)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(114 / math.sqrt(42 * 312))
    assert set(regression_scores([1.0, 1.0], [1.0, 2.0])) == {"mse", "mae"}


TAGS = ("O", "B-a", "I-a", "B-b", "I-b")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-a I-a O", [(1, 2, "a")]),
        ("B-a B-a", [(0, 0, "a"), (1, 1, "a")]),
        ("B-a I-b I-b", [(0, 0, "a"), (1, 2, "b")]),
        ("I-a I-a O I-b", [(0, 1, "a"), (3, 3, "b")]),
        ("O O", []),
        ("", []),
    ],
)
def test_entities_are_counted_as_conlleval_counts(tags: str, expected: list[Any]) -> None:
    """The same as seqeval 1.2.2 gives (compared on 3,000 random sentences when this was written)."""
    assert entities(tags.split()) == expected


def test_an_entity_is_right_as_a_whole() -> None:
    expected = [["B-a", "I-a", "O"], ["B-b", "O"]]
    predicted = [["B-a", "O", "O"], ["B-b", "O"]]
    found = tag_scores(predicted, expected, TAGS)
    assert found["tag_accuracy"] == pytest.approx(4 / 5)
    assert found["entity_precision"] == found["entity_recall"] == found["entity_f1"] == 0.5
    assert set(tag_scores([["x"]], [["y"]], ("x", "y"))) == {"tag_accuracy"}, "no entities"
    none = tag_scores([["O"]], [["O"]], TAGS)
    assert (none["tag_accuracy"], none["entity_f1"]) == (1.0, 0.0)


@pytest.mark.parametrize("metric", [multilabel_scores, regression_scores])
def test_no_examples_are_refused(metric: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        metric([], [])
    with pytest.raises(ValueError, match="at least one word"):
        tag_scores([[]], [[]], TAGS)
