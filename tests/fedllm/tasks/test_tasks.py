"""Tasks: features, losses by hand, metrics, clear refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedllm.data.formats.records import DataError
from fedllm.models.adapters.targets import chosen_layers
from fedllm.training.tunable import Tunable, initial_params, make_tunable

Make = Callable[..., Any]
WORDS = {"task.label_words": ["w5", "w6"], "task.prompt": "w7 {text} w8"}
GENERATION = {"task.kind": "generation", "task.target": "answer", "task.prompt": "w7 {text} w8"}


@pytest.fixture
def make(tiny_settings: Make, decoder_folder: Any) -> Callable[..., tuple[Tunable, Any]]:
    def build(decoder: bool = True, **changes: Any) -> tuple[Tunable, Any]:
        if decoder:
            changes["model.name"] = str(decoder_folder)
        settings = tiny_settings(**changes)
        return make_tunable(settings), settings

    return build


def test_head_features_and_losses(make: Any, word_records: Any) -> None:
    tunable, settings = make(decoder=False)
    params = initial_params(tunable, settings)
    assert not params["head.weight"].any()
    features = tunable.task.features(word_records(6, 1))
    assert features[0].input_ids[0] == 2, "starts with [CLS]"
    metrics = tunable.evaluate(params, features, 64)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5), "a head of zeros knows nothing"
    assert metrics["examples"] == 6
    params["head.bias"] = torch.tensor([20.0, -20.0])
    sure = tunable.evaluate(params, features, 64)
    low = sum(f.target == 0 for f in features) / 6
    assert sure["accuracy"] == pytest.approx(low)
    assert sure["loss"] == pytest.approx((1 - low) * 40, rel=1e-2)


def test_label_words_are_scored_after_the_prompt(make: Any, word_records: Any) -> None:
    tunable, settings = make(**WORDS)
    records = word_records(5, 1)
    features = tunable.task.features(records)
    for feature, record in zip(features, records, strict=True):
        words = [int(w[1:]) for w in record["text"].split()]
        assert feature.input_ids == [2, 7, *words, 8]
    params = initial_params(tunable, settings)
    leaves = {n: v.unsqueeze(0) for n, v in params.items()}
    for feature in features:
        batch = tunable.task.collate([feature])
        loss = tunable.losses(leaves, batch)
        with tunable.adapted(leaves):
            logits = tunable.backbone.model(**batch.model_inputs(), use_cache=False).logits
        pair = logits[0, -1, [5, 6]].float()
        assert float(loss) == pytest.approx(
            float(pair.logsumexp(0) - pair[feature.target]), rel=1e-4
        )


def test_generation_loss_is_on_the_target_alone(make: Any, word_records: Any) -> None:
    tunable, settings = make(**GENERATION)
    features = tunable.task.features(word_records(5, 1))
    params = initial_params(tunable, settings)
    leaves = {n: v.unsqueeze(0) for n, v in params.items()}
    for feature in features:
        batch = tunable.task.collate([feature])
        with tunable.adapted(leaves):
            logits = tunable.backbone.model(**batch.model_inputs(), use_cache=False).logits
        wanted = torch.tensor(feature.target_mask).nonzero().flatten()
        assert feature.input_ids[-1] == 3, "ends with the end of the sequence"
        assert 1 < len(wanted) < len(feature)
        padding = batch.input_ids.shape[1] - len(feature)
        logs = logits[0, padding:].float().log_softmax(-1)
        by_hand = -sum(logs[i - 1, feature.input_ids[i]] for i in wanted.tolist()) / len(wanted)
        assert float(tunable.losses(leaves, batch)) == pytest.approx(float(by_hand), rel=1e-4)
    metrics = tunable.evaluate(params, features, 64)
    assert metrics["perplexity"] > 1


def test_long_texts_are_cut_and_the_prompt_is_kept(make: Any) -> None:
    long = {"text": " ".join(["w20"] * 100), "label": "low", "answer": "w9"}
    encoder, _ = make(decoder=False)
    assert len(encoder.task.features([long])[0]) == 16
    decoder, _ = make(**WORDS)
    ids = decoder.task.features([long])[0].input_ids
    assert len(ids) <= 16
    assert (ids[1], ids[-1]) == (7, 8)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "task.prompt and task.label_words"),
        ({**WORDS, "task.label_words": ["w5 w9", "w5 w8"]}, "differ in their first token"),
        ({**WORDS, "task.prompt": "w7"}, r"\{text\} once in task.prompt"),
        ({**WORDS, "prefix.length": 0}, "prefix.length"),
        ({**WORDS, "prefix.layers": [5]}, "prefix.layers"),
    ],
)
def test_settings_that_do_not_fit_a_decoder_are_refused(
    changes: dict[str, Any], named: str, make: Any
) -> None:
    with pytest.raises(ValueError, match=named):
        make(**changes)


def test_generation_needs_a_decoder(make: Any) -> None:
    with pytest.raises(ValueError, match="decoder"):
        make(decoder=False, **GENERATION)


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"text": "w5", "label": "middle"}, "middle"),
        ({"text": "w5"}, "label"),
        ({"label": "low"}, r"task\.text"),
    ],
)
def test_bad_records_are_named(record: dict[str, str], named: str, make: Any) -> None:
    tunable, _ = make(decoder=False)
    with pytest.raises(DataError, match=named):
        tunable.task.features([{"text": "w5", "label": "low"}, record])


def test_no_examples_cannot_be_judged(make: Any) -> None:
    tunable, settings = make(decoder=False)
    with pytest.raises(ValueError, match="at least one example"):
        tunable.evaluate(initial_params(tunable, settings), [], 64)


def test_prefix_layers(tiny_settings: Make) -> None:
    def layers(value: Any) -> tuple[int, ...]:
        wanted = tiny_settings(**{"prefix.layers": value}).prefix.layers
        return chosen_layers(wanted, 4, "prefix.layers")

    assert layers("all") == (0, 1, 2, 3)
    assert layers([-1, 0]) == (0, 3)
    for wrong in ([4], [-5], [0, -4]):
        with pytest.raises(ValueError, match=r"prefix\.layers"):
            layers(wrong)


def test_initial_parameters_follow_from_the_settings(make: Any) -> None:
    for changes in ({}, {"prefix.init": "phrase", "prefix.phrase": "w4 w5 w6 w7"}):
        tunable, settings = make(decoder=False, **changes)
        first, again = initial_params(tunable, settings), initial_params(tunable, settings)
        assert list(first) == ["head.bias", "head.weight", "prefix"]
        assert all(torch.equal(first[n], again[n]) for n in first)
        assert all(v.dtype == torch.float32 for v in first.values())
