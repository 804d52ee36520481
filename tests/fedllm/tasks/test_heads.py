"""Multi-label classification, regression and tags of words: features, losses by hand, answers, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedllm.data.formats.records import DataError
from fedllm.settings.io import SettingsError
from fedllm.tasks.base import expand_params
from fedllm.tasks.heads.tokens import first_tokens
from fedllm.training.batch.independence import require_independence
from fedllm.training.batch.rehearsal import rehearse
from fedllm.training.gradients import per_example_gradients
from fedllm.training.tunable import Tunable, initial_params
from simulations.attacks.batch_mates.architectures import task_records, tiny_tunable
from tests.support.tiny_tunables import alone, shaken

KINDS = ("multilabel", "regression", "tokens")


def at(kind: str, seed: int = 1) -> tuple[Tunable, dict[str, torch.Tensor]]:
    settings, tunable = tiny_tunable("bert", torch.float32, kind)
    return tunable, shaken(initial_params(tunable, settings), seed)


@pytest.mark.parametrize("kind", [*KINDS, "chat"])
def test_a_gradient_in_a_batch_is_that_of_the_example_alone(kind: str) -> None:
    settings, tunable = tiny_tunable("llama" if kind == "chat" else "bert", torch.float32, kind)
    params = shaken(initial_params(tunable, settings))
    features = tunable.task.features(task_records(kind, [3, 9, 8, 5], 3))
    found = per_example_gradients(tunable, params, tunable.task.collate(features))
    assert any(bool(value.any()) for value in found.values())
    for row, feature in enumerate(features):
        for name, value in alone(tunable, params, feature).items():
            torch.testing.assert_close(found[name][row], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, "chat"])
def test_a_public_example_is_rehearsed_and_batch_mates_are_measured(kind: str) -> None:
    settings, tunable = tiny_tunable("llama" if kind == "chat" else "bert", torch.float32, kind)
    params = initial_params(tunable, settings)
    rehearse(tunable, params, gradients=True)
    assert require_independence(tunable, params).difference == 0


def test_labels_are_decided_one_by_one() -> None:
    tunable, params = at("multilabel")
    records = [{"text": "w5 w6", "labels": ["a", "c"]}, {"text": "w7", "labels": []}]
    features = tunable.task.features(records)
    assert [f.values for f in features] == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    batch = tunable.task.collate(features)
    rows = expand_params(params, 2)
    scores, weights = tunable.scores(rows, batch)
    assert scores.shape == (2, 3, 2)
    assert weights.tolist() == [[pytest.approx(1 / 3)] * 3] * 2
    logs = scores.log_softmax(-1)
    truth = torch.tensor([f.values for f in features]).long()
    by_hand = -logs.gather(-1, truth.unsqueeze(-1)).squeeze(-1).mean(-1)
    torch.testing.assert_close(tunable.losses(rows, batch), by_hand)
    with tunable.adapted(expand_params(params, 1)):
        answers = tunable.task.answers(rows, batch, features)
    for answer, row in zip(answers, logs.exp()[..., 1].tolist(), strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(row)
        assert answer["labels"] == [x for x, share in zip("abc", row, strict=True) if share >= 0.5]


def test_labels_may_be_one_text_and_unknown_ones_are_named() -> None:
    tunable, _ = at("multilabel")

    def values(given: Any) -> Any:
        return tunable.task.features([{"text": "w5", "labels": given}])[0].values

    assert values("a|c") == values(["c", "a", "a"]) == values(" a | c ") == [1.0, 0.0, 1.0]
    assert values("") == values([]) == [0.0, 0.0, 0.0]
    for wrong, fault in ((["a", "d"], "'d'.*not among a, b, c"), (None, "no labels"), (3, "int")):
        with pytest.raises(DataError, match=f"record 0 .*{fault}"):
            values(wrong)


def test_numbers_are_stretched_to_the_public_range() -> None:
    tunable, params = at("regression")
    numbers = [0, 25.0, "100", 50, 250]
    features = tunable.task.features(
        [{"text": f"w{i + 4}", "score": n} for i, n in enumerate(numbers)]
    )
    assert [f.values for f in features] == [
        [-1.0, 0.0],
        [-0.5, 25.0],
        [1.0, 100.0],
        [0.0, 50.0],
        [1.0, 250.0],
    ]
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    batch = tunable.task.collate(features)
    losses = tunable.losses(expand_params(zeros, 5), batch)
    assert losses.tolist() == [1.0, 0.25, 1.0, 0.0, 1.0]
    with tunable.adapted(expand_params(zeros, 1)):
        assert tunable.task.answers(expand_params(zeros, 5), batch, features) == [50.0] * 5
    metrics = tunable.evaluate(zeros, features, 512)
    assert metrics["mae"] == pytest.approx((50 + 25 + 50 + 0 + 200) / 5)
    assert "pearson" not in metrics, "a constant has no correlation"
    moved = tunable.evaluate(params, features, 512)
    assert -1 <= moved["spearman"] <= 1
    high = zeros | {"head.bias": torch.tensor([7.0])}
    with tunable.adapted(expand_params(high, 1)):
        assert tunable.task.answers(expand_params(high, 5), batch, features) == [100.0] * 5
    for wrong in (None, "many", float("nan"), True, [1]):
        with pytest.raises(DataError, match=r"record 0 .*number"):
            tunable.task.features([{"text": "w4", "score": wrong}])
    with pytest.raises(TypeError, match="regression"):
        tunable.scores(expand_params(params, 5), batch)


def test_tags_are_of_each_words_first_token() -> None:
    tunable, params = at("tokens")
    records = [
        {"tokens": ["w5", "w6 w7", "w8"], "tags": ["B-x", "I-x", "O"]},
        {"tokens": "w9 w9", "tags": "O B-x"},
        {"tokens": ["w9"], "tags": [1]},
    ]
    features = tunable.task.features(records)
    assert features[0].input_ids == [2, 5, 6, 7, 8, 3]
    assert features[0].target_mask == [0, 1, 1, 0, 1, 0]
    assert features[0].token_targets == [0, 1, 2, 0, 0, 0]
    assert features[2].token_targets == [0, 1, 0]
    batch = tunable.task.collate(features[:2])
    rows = expand_params(params, 2)
    scores, weights = tunable.scores(rows, batch)
    logs = scores.log_softmax(-1)
    by_hand = -(logs[0, 1, 1] + logs[0, 2, 2] + logs[0, 4, 0]) / 3
    assert float(tunable.losses(rows, batch)[0]) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(-(weights[0] @ logs[0, :, 0]) * 3) == pytest.approx(
        -float(logs[0, 1, 0] + logs[0, 2, 0] + logs[0, 4, 0]), rel=1e-5
    )
    with tunable.adapted(expand_params(params, 1)):
        answers = tunable.task.answers(rows, batch, features[:2])
    best = scores.argmax(-1)
    labels = tunable.task.settings.labels or ()
    assert answers[0] == {
        "words": ["w5", "w6 w7", "w8"],
        "tags": [labels[int(best[0, i])] for i in (1, 2, 4)],
    }
    metrics = tunable.evaluate(params, features, 512)
    assert {"tag_accuracy", "entity_f1", "entity_precision", "entity_recall"} <= set(metrics)


def test_a_word_beyond_the_limit_has_no_tag() -> None:
    tunable, params = at("tokens")
    long = {"tokens": ["w5"] * 100, "tags": ["O"] * 100}
    (feature,) = tunable.task.features([long])
    assert len(feature) == 64
    assert sum(feature.target_mask or []) == 62
    with tunable.adapted(expand_params(params, 1)):
        (answer,) = tunable.task.answers(
            expand_params(params, 1), tunable.task.collate([feature]), [feature]
        )
    assert len(answer["tags"]) == 100
    assert answer["tags"][62:] == [None] * 38
    assert None not in answer["tags"][:62]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"tokens": ["w5"], "tags": ["O", "O"]}, "1 words with 2 tags"),
        ({"tokens": ["w5"], "tags": ["B-y"]}, "'B-y', which is not among"),
        ({"tokens": ["w5"], "tags": [3]}, "the tag 3"),
        ({"tokens": [], "tags": []}, "no word"),
        ({"tokens": ["w5", " "], "tags": ["O", "O"]}, "a word: blank"),
        ({"tokens": ["w5"], "tags": None}, "in place of a list of tags"),
    ],
)
def test_records_that_are_no_words_with_tags_are_named(record: Any, fault: str) -> None:
    with pytest.raises(DataError, match=f"record 0 .*{fault}"):
        at("tokens")[0].task.features([record])


def test_first_tokens_by_their_places_in_the_text() -> None:
    words = ["ab", "c", "def", "g"]  # ab c def g
    assert first_tokens(words, [(0, 0), (0, 1), (1, 2), (3, 4), (5, 8), (9, 10), (0, 0)]) == {
        0: 1,
        1: 3,
        2: 4,
        3: 5,
    }
    assert first_tokens(words, [(0, 2), (2, 4), (4, 8)]) == {0: 0, 1: 1, 2: 2}, "blanks in front"
    assert first_tokens(words, [(0, 4), (5, 6)]) == {0: 0, 1: 0, 2: 1}, "one token for two words"
    assert first_tokens(words, [(2, 3), (9, 10)]) == {3: 1}, "a blank alone is no word's"


TASKS: dict[str, dict[str, Any]] = {
    "multilabel": {"task.kind": "multilabel"},
    "regression": {"task.kind": "regression", "task.target_range": [0, 1], "task.labels": None},
    "tokens": {"task.kind": "tokens", "task.text": ["tokens"], "task.labels": ["O", "B-x"]},
    "chat": {"task.kind": "chat", "task.labels": None},
}


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("regression", {"task.target_range": None}, r"task.target_range=\[low, high\].*got none"),
        ("regression", {"task.target_range": [2, 1]}, "low < high in task.target_range"),
        ("regression", {"task.target_range": [0, math.inf]}, "finite low < high"),
        ("multilabel", {"task.labels": []}, "task.labels with at least 1 class"),
        ("multilabel", {"task.labels": ["a", "a"]}, "distinct task.labels"),
        ("tokens", {"task.labels": ["O"]}, "task.labels with at least 2"),
        ("tokens", {"task.text": ["a", "b"]}, "one column in task.text"),
        ("chat", {"task.text": ["a"], "task.target": "b"}, "one column in task.text, and the same"),
        ("chat", {"task.prompt": "{messages}"}, "no task.prompt for task.kind=chat"),
        ("tokens", {"task.label_words": ["a", "b"]}, "no task.label_words for task.kind=tokens"),
        ("multilabel", {"task.template": "{{ 1 }}"}, "no task.template for task.kind=multilabel"),
        ("multilabel", {"task.max_prompt": 3}, "no task.max_prompt for task.kind=multilabel"),
        ("tokens", {"task.target_range": [0, 1]}, "no task.target_range for task.kind=tokens"),
        (
            "regression",
            {
                "teacher.kind": "ema",
                "teacher.distillation": 0.1,
                "public.source": "files",
                "public.path": ".",
            },
            "teacher.distillation=0 for task.kind=regression",
        ),
        *(
            (
                kind,
                {"evaluation.clients": "raw", "evaluation.clients_holdout": 0.1},
                f"evaluation.clients=off for task.kind={kind}",
            )
            for kind in ("regression", "tokens", "chat")
        ),
        *(
            (
                kind,
                {"data.partition": form, "data.silos": 2},
                f"data.partition=natural, hash or iid for task.kind={kind}",
            )
            for kind in TASKS
            for form in ("dirichlet", "pathological")
        ),
        ("chat", {"adapter.form": "head"}, "adapter.form other than head for task.kind=chat"),
        *(
            (kind, {"public.source": "tweets", "public.labels": {"a": "b"}}, "no public.labels")
            for kind in TASKS
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    kind: str, changes: dict[str, Any], named: str, tiny_settings: Callable[..., Any]
) -> None:
    with pytest.raises(SettingsError, match=named):
        tiny_settings(**TASKS[kind] | changes)


@pytest.mark.parametrize("kind", TASKS)
def test_the_columns_of_a_kind_have_names_of_their_own(
    kind: str, tiny_settings: Callable[..., Any]
) -> None:
    task = tiny_settings(**TASKS[kind]).task
    names = {
        "multilabel": ("text", "labels"),
        "regression": ("text", "score"),
        "tokens": ("tokens", "tags"),
        "chat": ("messages",),
    }
    assert task.columns.names == names[kind]
    assert task.columns.form == task.facts.holds


def test_a_decoder_is_refused_for_a_head(
    tiny_settings: Callable[..., Any], decoder_folder: Any
) -> None:
    from fedllm.training.tunable import make_tunable

    changes = TASKS["multilabel"] | {"model.name": str(decoder_folder)}
    with pytest.raises(ValueError, match="encoder"):
        make_tunable(tiny_settings(**changes))
