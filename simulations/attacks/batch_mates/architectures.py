"""Tiny random models of several architectures in memory, for attacks on the code and not on a model."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from fedllm.models.backbone import Backbone, make_backbone
from fedllm.settings.experiment import Settings
from fedllm.settings.io import parse_settings
from fedllm.training.tunable import Tunable, make_tunable

WORDS = 120
_SHAPE: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 24}
_SHAPE |= {"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.4}
_IDS: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
_BASE = _SHAPE | _IDS | {"max_position_embeddings": 128}
_LONGROPE = {"type": "longrope", "short_factor": [1.0] * 2, "long_factor": [2.0, 4.0]}
_CONFIGS: dict[str, tuple[Literal["encoder", "decoder"], str, dict[str, Any]]] = {
    "bert": ("encoder", "bert", _BASE),
    "bert-wide": (
        "encoder",
        "bert",
        _BASE | {"hidden_size": 384, "num_attention_heads": 12, "initializer_range": 0.05},
    ),
    "roberta": ("encoder", "roberta", _BASE),
    "llama": ("decoder", "llama", _BASE | {"num_key_value_heads": 2}),
    "llama-wide": (
        "decoder",
        "llama",
        _BASE | {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2},
    ),
    "gpt2": (
        "decoder",
        "gpt2",
        _IDS
        | {"vocab_size": WORDS, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 128}
        | {"initializer_range": 0.4},
    ),
    "gpt_neox": ("decoder", "gpt_neox", _BASE),
    "phi3-longrope": (
        "decoder",
        "phi3",
        _BASE
        | {"num_key_value_heads": 2, "original_max_position_embeddings": 24}
        | {"rope_scaling": _LONGROPE},
    ),
    "llama-dynamic": (
        "decoder",
        "llama",
        _BASE | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    ),
}
ARCHITECTURES = tuple(_CONFIGS)
_TASKS: dict[str, dict[str, Any]] = {
    "multilabel": {"labels": ["a", "b", "c"]},
    "regression": {"target_range": [0.0, 100.0]},
    "tokens": {"labels": ["O", "B-x", "I-x"]},
    "chat": {
        "template": "{% for m in messages %}{{ 'w110 ' if m.role == 'user' else 'w111 ' }}{{ m.content }} [SEP] {% endfor %}"
        "{% if add_generation_prompt %}w111 {% endif %}"
    },
}
"""Settings of kinds of tasks beside text and label."""


def tiny_backbone(architecture: str, dtype: torch.dtype) -> Backbone:
    """A random model of two layers and its tokenizer of whole words, prepared for prefixes."""
    kind, model_type, shape = _CONFIGS[architecture]
    torch.manual_seed(0)
    auto = AutoModel if kind == "encoder" else AutoModelForCausalLM
    config = AutoConfig.for_model(model_type, **shape)
    model = auto.from_config(config).to(dtype)
    return make_backbone(model, tiny_tokenizer(kind), kind, architecture)


@lru_cache(maxsize=32)
def tiny_tunable(
    architecture: str,
    dtype: torch.dtype = torch.float32,
    task: str = "classification",
    form: str = "prefix",
) -> tuple[Settings, Tunable]:
    """The tiny model with an adapter (a prefix of four, LoRA of rank 3) in every layer, to classify or to generate."""
    backbone = tiny_backbone(architecture, dtype)
    settings = tiny_settings(backbone, task, form)
    return settings, make_tunable(settings, backbone)


def tiny_settings(backbone: Backbone, task: str, form: str, **sections: Any) -> Settings:
    """Settings for a tiny model: one of two classes, or words to write; ``sections`` are added."""
    tree: dict[str, Any] = {"kind": task, **_TASKS.get(task, {"text": ["text"], "target": "label"})}
    tree["max_length"] = 48 if backbone.kind != "encoder" and task != "classification" else 64
    if task == "classification":
        tree["labels"] = ["a", "b"]
        if backbone.kind == "decoder":
            tree |= {"label_words": ["w10", "w11"], "prompt": "{text} w5"}
    return parse_settings(
        {
            "model": {"name": backbone.name} | sections.get("model", {}),
            "data": {"source": "files", "path": "."},
            "adapter": {"form": form, "rank": 3} | sections.get("adapter", {}),
            "prefix": {"length": 4, "init": "random", "init_std": 0.5} | sections.get("prefix", {}),
            "task": tree,
        }
    )


def random_records(lengths: list[int], seed: int) -> list[dict[str, str]]:
    """Texts of random words, and labels that are one of two, or words to write."""
    draw = random.Random(seed)
    return [
        {
            "text": " ".join(f"w{draw.randrange(4, WORDS)}" for _ in range(length)),
            "label": draw.choice("ab"),
        }
        for length in lengths
    ]


def task_records(task: str, lengths: list[int], seed: int) -> list[dict[str, Any]]:
    """Return records of random words, in the form of a kind of task."""
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    for record in random_records(lengths, seed):
        text, words = record["text"], record["text"].split()
        forms: dict[str, dict[str, Any]] = {
            "multilabel": {"text": text, "labels": [x for x in "abc" if draw.random() < 0.5]},
            "regression": {"text": text, "score": 100 * draw.random()},
            "tokens": {"tokens": words, "tags": [draw.choice(["O", "B-x", "I-x"]) for _ in words]},
            "chat": {
                "messages": [
                    {"role": role, "content": " ".join(part)}
                    for start in range(0, len(words), 8)
                    for role, part in (
                        ("user", words[start : start + 3]),
                        ("assistant", words[start + 3 : start + 8] or ["w9"]),
                    )
                ]
            },
        }
        found.append(forms.get(task, record))
    return found


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words."""
    special = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3}
    words = special | {f"w{i}": i for i in range(4, WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if kind == "encoder":
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    )
