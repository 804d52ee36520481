"""Several text columns: what an encoder reads is what its tokenizer's own call gives, segment ids included."""

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
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from fedllm.budget.release_id import features_digest
from fedllm.models.backbone import load_backbone
from fedllm.training.gradients import per_example_gradients
from fedllm.training.tunable import Tunable, initial_params, make_tunable

WORDS = 60
ROWS = [
    {"a": "w5 w6 w7 w8", "b": "w9 w10", "c": "w11 w12", "d": "w13", "label": "low"},
    {"a": "w14", "b": "w15 w16 w17 w18 w19", "c": "w20", "d": "w21 w22", "label": "high"},
]


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT and a tokenizer that tells the first text from the second."""
    folder = tmp_path_factory.mktemp("pair-bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.4,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {f"w{i}": i for i in range(4, WORDS)}
    made = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def tunable(pair_folder: Path, tiny_settings: Callable[..., Any]) -> Callable[..., Tunable]:
    def make(*columns: str, **changes: Any) -> Tunable:
        named = {"model.name": str(pair_folder), "task.text": list(columns), "task.max_length": 24}
        return make_tunable(
            tiny_settings(**(named | changes)), load_backbone(str(pair_folder), device="cpu")
        )

    return make


@pytest.mark.parametrize(
    "columns", [("a",), ("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d", "a")]
)
def test_hidden_states_are_those_of_the_tokenizers_own_call(
    columns: tuple[str, ...], tunable: Callable[..., Tunable], pair_folder: Path
) -> None:
    found = tunable(*columns)
    features = found.task.features(ROWS)
    tokenizer = AutoTokenizer.from_pretrained(pair_folder)
    texts = [[row[columns[0]] for row in ROWS]]
    if len(columns) > 1:
        texts.append([" [SEP] ".join(row[c] for c in columns[1:]) for row in ROWS])
    usual = tokenizer(*texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(pair_folder).eval()(**usual).last_hidden_state
        batch = found.task.collate(features)
        ours = found.task.run(batch).last_hidden_state
    for row, feature in enumerate(features):
        n = len(feature)
        assert feature.input_ids == usual["input_ids"][row, :n].tolist()
        assert feature.segments == usual["token_type_ids"][row, :n].tolist()
        torch.testing.assert_close(ours[row, :n], expected[row, :n], atol=1e-5, rtol=0)
        for column in columns:
            words = [tokenizer.convert_tokens_to_ids(w) for w in ROWS[row][column].split()]
            assert set(words) <= set(feature.input_ids)


def test_segments_change_what_a_pair_means(tunable: Callable[..., Tunable]) -> None:
    """Without them the hidden states are others: the case would go unnoticed in the loss."""
    found = tunable("a", "b")
    batch = found.task.collate(found.task.features(ROWS))
    assert batch.token_type_ids is not None
    assert int(batch.token_type_ids.max()) == 1
    with torch.no_grad():
        ours = found.task.run(batch).last_hidden_state
        batch.token_type_ids = None
        without = found.task.run(batch).last_hidden_state
    assert float((ours - without).abs().max()) > 0.1


def test_long_columns_are_cut_and_none_is_left_out(tunable: Callable[..., Tunable]) -> None:
    row = {"a": "w5 " * 40, "b": "w6 " * 40, "c": "w7", "d": "w8 " * 3, "label": "low"}
    (feature,) = tunable("a", "b", "c", "d").task.features([row])
    counts = [feature.input_ids.count(token) for token in (5, 6, 7, 8)]
    assert len(feature) <= 24
    assert counts == [7, 7, 1, 3]
    (one,) = tunable("a", "b", "c", "d", **{"task.max_length": 9}).task.features([row])
    assert all(token in one.input_ids for token in (5, 6, 7, 8))


def test_a_features_gradient_is_its_own_with_segments(
    tunable: Callable[..., Tunable], tiny_settings: Callable[..., Any]
) -> None:
    found = tunable("a", "b")
    params = initial_params(found, tiny_settings())
    features = found.task.features(ROWS)
    together = per_example_gradients(found, params, found.task.collate(features))
    for row, feature in enumerate(features):
        alone = per_example_gradients(found, params, found.task.collate([feature]))
        for name in params:
            torch.testing.assert_close(together[name][row], alone[name][0], atol=1e-6, rtol=1e-5)


def test_the_digest_of_examples_holds_their_segments(tunable: Callable[..., Tunable]) -> None:
    """Other segments are another value under seeded noise, so they must be another release."""
    features = tunable("a", "b").task.features(ROWS)
    before = features_digest(features)
    assert features[0].segments is not None
    features[0].segments[-1] = 0
    assert features_digest(features) != before


def test_models_without_segments_get_none(
    tiny_settings: Callable[..., Any], decoder_folder: Path
) -> None:
    """Decoders, and encoders with one kind of text, even where the tokenizer gives numbers."""
    words = {"model.name": str(decoder_folder), "task.label_words": ["w5", "w6"]}
    decoder = make_tunable(tiny_settings(**words, **{"task.prompt": "{text}"}))
    (feature,) = decoder.task.features([{"text": "w7", "label": "low"}])
    assert feature.segments is None
    encoder = make_tunable(tiny_settings())
    encoder.backbone.model.config.type_vocab_size = 1
    try:
        (feature,) = encoder.task.features([{"text": "w7", "label": "low"}])
        assert feature.segments is None
    finally:
        encoder.backbone.model.config.type_vocab_size = 2
