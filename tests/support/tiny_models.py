"""Tiny random models of each architecture, made here without a hub."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

VOCABULARY = 60
_SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48}
_SHAPE |= {"num_hidden_layers": 3, "num_attention_heads": 4, "initializer_range": 0.2}
_GROUPED = _SHAPE | {"num_key_value_heads": 2, "max_position_embeddings": 128}
_IDS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}

_CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: BertConfig(**_SHAPE, max_position_embeddings=64, pad_token_id=1),
    "roberta": lambda: RobertaConfig(**_SHAPE, max_position_embeddings=66, **_IDS),
    "albert": lambda: AlbertConfig(
        **_SHAPE, embedding_size=16, max_position_embeddings=64, pad_token_id=1
    ),
    "llama": lambda: LlamaConfig(**_GROUPED, **_IDS),
    "qwen2": lambda: Qwen2Config(**_GROUPED, **_IDS),
    "qwen3": lambda: Qwen3Config(**_GROUPED, **_IDS, head_dim=8),
    "mistral": lambda: MistralConfig(**_GROUPED, **_IDS, sliding_window=12),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=128,
        initializer_range=0.2,
        **_IDS,
    ),
}
ENCODERS = ("bert", "roberta", "albert")


def make_tiny_model(
    architecture: str, dtype: torch.dtype = torch.float64, seed: int = 0
) -> PreTrainedModel:
    """A model with 3 layers, 4 heads of size 8 (2 key/value heads where grouped), frozen."""
    torch.manual_seed(seed)
    auto = AutoModel if architecture in ENCODERS else AutoModelForCausalLM
    model = auto.from_config(_CONFIGS[architecture](), dtype=dtype)
    return model.eval().requires_grad_(False)


def make_tiny_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Words w4 ... w59, and the special tokens at 0 to 3."""
    special = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3}
    words = special | {f"w{i}": i for i in range(4, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    single = "[CLS] $A" if bos else "[CLS] $A [SEP]"
    tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "[SEP]"}
    names |= {"bos_token": "[CLS]"} if bos else {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
