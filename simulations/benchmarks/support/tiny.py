"""A tiny random encoder and decoder, data of random words, and the settings of an experiment with
them that takes a second: for tests and for benchmarks of everything but the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WORDS = 60
"""Size of the tiny models' vocabulary: four special tokens, then w4 ... w59."""
LABELS = ("low", "high")
SILOS = {"alpha": 60, "beta": 45, "gamma": 30, "delta": 24}
"""Number of training examples of each silo."""


def save_encoder(folder: Path, layers: int = 2) -> None:
    """Write a random BERT of two (or more) layers, four heads of size 4, with its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.4,
        pad_token_id=1,
    )
    BertModel(config).save_pretrained(folder)
    _save_tokenizer(folder)


def save_decoder(folder: Path, layers: int = 2) -> None:
    """Write a random Llama of two (or more) layers with grouped key/value heads, with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    _save_tokenizer(folder)


def make_records(count: int, seed: int, silo: str = "") -> list[dict[str, Any]]:
    """Return the texts of 2 to 9 words; the label tells whether more than half of them are above w31."""
    rng = np.random.default_rng(seed)
    records = []
    for _ in range(count):
        words = rng.integers(4, WORDS, size=int(rng.integers(2, 10)))
        label = LABELS[int((words > 31).mean() > 0.5)]
        text = " ".join(f"w{i}" for i in words)
        answer = " ".join(f"w{i}" for i in words[: 1 + len(words) // 3])
        records.append({"text": text, "label": label, "answer": answer, "organisation": silo})
    return records


def save_words(folder: Path) -> None:
    """Write train.jsonl (the silos' examples) and validation.jsonl (40)."""
    rows = []
    for seed, (silo, count) in enumerate(SILOS.items()):
        rows += make_records(count, seed, silo)
    validation = make_records(40, 99, "server")
    for name, chosen in {"train": rows, "validation": validation}.items():
        text = "".join(json.dumps(row) + "\n" for row in chosen)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def tree(encoder: Path, words: Path, **changes: Any) -> dict[str, Any]:
    """Return plain settings of a small seeded experiment; ``changes`` as ``{"section.key": value}``."""
    plain: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "model": {"name": str(encoder), "device": "cpu"},
        "prefix": {"length": 2, "init": "random"},
        "task": {"labels": list(LABELS), "max_length": 16},
        "data": {
            "source": "files",
            "path": str(words),
            "train": "train.jsonl",
            "validation": "validation.jsonl",
            "min_size": 1,
        },
        "client": {"local_steps": 2, "batch_size": 8, "learning_rate": 0.1},
        "server": {"rounds": 3, "learning_rate": 0.05},
        "privacy": {
            "epsilon": 50.0,
            "noise_multiplier": 0.8,
            "clip": 0.5,
            "randomness": "seeded",
            "accountant": "rdp",
        },
        "evaluation": {"every": 100},
        "simulation": {"workers": 1},
        "output": {"tensorboard": False},
    }
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        (plain.setdefault(section, {}) if section else plain)[key] = value
    return plain


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3}
    words = special | {f"w{i}": i for i in range(4, WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    ).save_pretrained(folder)
