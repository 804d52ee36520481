"""Prompts that a label word or an answer follows, whatever the tokenizer puts behind a text; odd tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from fedllm.models.backbone import load_backbone
from fedllm.models.embedded import ModelError
from fedllm.tasks.open_end import end_tokens
from fedllm.training.gradients import per_example_gradients
from fedllm.training.tunable import Tunable, initial_params, make_tunable

WORDS = 60
CLASSES = {"task.prompt": "{text} w5", "task.label_words": ["w10", "w11"]}
WRITING = {"task.kind": "generation", "task.labels": None, "task.target": "answer"}
RECORDS = [{"text": "w20 w21", "label": "low", "answer": "w30"}]


def tokenizer(single: str = "$A", **special: str | None) -> PreTrainedTokenizerFast:
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {f"w{i}": i for i in range(4, WORDS)}
    made = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names: dict[str, str | None] = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    names |= {"bos_token": "[CLS]", "eos_token": "[SEP]"} | special
    return PreTrainedTokenizerFast(
        tokenizer_object=made, **{key: value for key, value in names.items() if value}
    )


@pytest.fixture
def tunable(tmp_path: Path, tiny_settings: Callable[..., Any]) -> Callable[..., Tunable]:
    def make(made: PreTrainedTokenizerFast, **changes: Any) -> Tunable:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=WORDS,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        made.save_pretrained(tmp_path)
        settings = tiny_settings(**{"model.name": str(tmp_path)}, **changes)
        backbone = load_backbone(str(tmp_path), kind="decoder", device="cpu")
        return make_tunable(settings, backbone)

    return make


def trains(found: Tunable, settings: Any) -> bool:
    batch = found.task.collate(found.task.features(RECORDS))
    gradients = per_example_gradients(found, initial_params(found, settings), batch)
    return all(bool(value.isfinite().all()) for value in gradients.values())


@pytest.mark.parametrize(
    ("single", "front"),
    [("$A", []), ("[CLS] $A", [2]), ("[CLS] $A [SEP]", [2]), ("$A [SEP] [SEP]", [])],
)
@pytest.mark.parametrize("changes", [CLASSES, WRITING | {"task.prompt": "{text} w5"}])
def test_nothing_stands_between_a_prompt_and_what_follows(
    single: str,
    front: list[int],
    changes: dict[str, Any],
    tunable: Callable[..., Tunable],
    tiny_settings: Callable[..., Any],
) -> None:
    found = tunable(tokenizer(single), **changes)
    assert end_tokens(found.backbone.tokenizer) == single.count("[SEP]")
    (feature,) = found.task.features(RECORDS)
    prompt = [*front, 20, 21, 5]
    assert feature.input_ids == (prompt if changes is CLASSES else [*prompt, 30, 3])
    assert trains(found, tiny_settings())


def test_long_prompts_keep_their_end_and_their_bound(tunable: Callable[..., Tunable]) -> None:
    found = tunable(tokenizer("[CLS] $A [SEP]"), **CLASSES, **{"task.max_length": 8})
    (feature,) = found.task.features([{"text": "w7 " * 50, "label": "low"}])
    assert feature.input_ids[0] == 2
    assert feature.input_ids[-1] == 5
    assert len(feature) <= found.task.longest  # type: ignore[operator]


def test_an_answer_needs_an_end_token(tunable: Callable[..., Tunable]) -> None:
    made = tokenizer(eos_token=None)
    tunable(made, **CLASSES)  # label words need none
    with pytest.raises(ValueError, match=r"Expected an end token .*task.kind=generation"):
        tunable(made, **WRITING)


def test_padding_without_an_embedding_is_replaced(
    tunable: Callable[..., Tunable], tiny_settings: Callable[..., Any]
) -> None:
    made = tokenizer()
    made.add_tokens([f"<x{i}>" for i in range(9)])
    made.pad_token = "<x8>"
    found = tunable(made, **CLASSES)
    assert found.backbone.pad_id < WORDS
    assert trains(found, tiny_settings())
    words = {"[PAD]": 70, "[UNK]": 71}
    lost = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")),
        unk_token="[UNK]",
        pad_token="[PAD]",
    )
    with pytest.raises(ModelError, match="bos token among the 60 embeddings, got none"):
        tunable(lost, **CLASSES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["", "w11"], r"a token in each of task.label_words, got none in ''"),
        ([" ", "w11"], r"a token in each of task.label_words, got none in ' '"),
        (["w10", "good"], r"words that the tokenizer knows .* got 'good'"),
        (["w10", "w10 w11"], r"differ in their first token"),
    ],
)
def test_label_words_without_a_token_of_their_own_are_one_line(
    words: list[str], message: str, tunable: Callable[..., Tunable]
) -> None:
    with pytest.raises(ValueError, match=message):
        tunable(tokenizer(), **(CLASSES | {"task.label_words": words}))
