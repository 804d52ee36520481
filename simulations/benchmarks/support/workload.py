"""Workloads of the benchmarks: models, texts and settings, with stand-ins for absent ones.

Time and memory of a step depend on the shapes alone. So where an embedded model's package is not
installed (a bare GPU machine), a model of the same shape with random weights stands in; where no
text is at hand, random words of SST-2's lengths do. What was used is said in the output.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedllm.data.formats.records import DataError
from fedllm.data.formats.sources import load_file
from fedllm.data.formats.tweets import load_tweets
from fedllm.models.embedded import ModelError, cache_folder, convert_gguf, embedded_file
from fedllm.settings.experiment import Settings

LABELS = ("negative", "positive")
LABEL_WORDS = (" negative", " positive")
PROMPT = "Review: {text} Sentiment:"
PHRASE = "Classify the sentiment of this text as negative or positive:"
MAX_LENGTH = 64


@dataclass(frozen=True)
class ModelSource:
    """A model folder (or hub id) for ``from_pretrained``, and its description."""

    folder: str
    note: str


def model_source(name: str) -> ModelSource:
    """Return the folder of an embedded model, or of its stand-in; other names as they are."""
    if name not in ("minilm", "smollm2"):
        return ModelSource(name, name)
    try:
        file = embedded_file(name)
    except ModelError:
        return ModelSource(str(stand_in(name)), f"random weights in the shape of {name}")
    folder = file.parent if name == "minilm" else convert_gguf(file)[0]
    return ModelSource(str(folder), name)


def stand_in(name: str) -> Path:
    """Return the folder of a model with random weights in the shape of ``minilm`` or ``smollm2``, made once."""
    from transformers import AutoModel, AutoModelForCausalLM, BertConfig, LlamaConfig

    folder = cache_folder() / f"stand-in-{name}"
    if (folder / "config.json").is_file():
        return folder
    tokenizer = stand_in_tokenizer(encoder=name == "minilm")
    special = {"pad_token_id": tokenizer.pad_token_id}
    if name == "minilm":
        shape = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
        model = AutoModel.from_config(BertConfig(vocab_size=30522, **shape, **special))
    else:
        shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
        shape |= {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
        config = LlamaConfig(
            **shape, **special, max_position_embeddings=8192, tie_word_embeddings=True
        )
        model = AutoModelForCausalLM.from_config(config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def stand_in_tokenizer(encoder: bool, words: int = 4000) -> Any:
    """Return a tokenizer of whole words: the labels and the first ``words`` of :func:`random_texts`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    known = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *LABELS, *(_word(i) for i in range(words))]
    vocabulary = {word: number for number, word in enumerate(known)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    if encoder:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _word(index: int) -> str:
    return f"w{index}"


def data_folder() -> Path:
    """Return the folder with ``sst2/``: the variable FEDLLM_TEST_DATA, else ``../shared/data``."""
    default = Path(__file__).resolve().parents[4] / "shared" / "data"
    return Path(os.environ.get("FEDLLM_TEST_DATA") or default)


def load_texts(count: int, data: str = "auto", seed: int = 0) -> tuple[list[dict[str, str]], str]:
    """Return ``count`` examples ``{"text", "label"}`` in random order, and a word on where they are from.

    Args:
        data: "sst2", "tweets", "random", or "auto" for the first of these that is at hand.

    Raises:
        ValueError: an unknown name.
        DataError: the data asked for is not there, or has fewer examples.
    """
    if data not in ("auto", "sst2", "tweets", "random"):
        raise ValueError(f"Expected data to be auto, sst2, tweets or random, got data={data!r}")
    file = data_folder() / "sst2" / "train.jsonl.gz"
    if data == "sst2" or (data == "auto" and file.is_file()):
        records = [
            {"text": str(r["text"]), "label": LABELS[int(r["label"])]} for r in load_file(file)
        ]
        return _some(records, count, seed, "sst2"), "sst2/train"
    if data != "random":
        try:
            kept = (r for r in load_tweets() if r["label"] in LABELS)
            records = [{"text": r["text"], "label": r["label"]} for r in kept]
            return _some(records, count, seed, "tweets"), "embedded tweets"
        except DataError:
            if data == "tweets":
                raise
    return random_texts(count, seed), "random words, lengths as in sst2"


def _some(
    records: Iterable[dict[str, str]], count: int, seed: int, name: str
) -> list[dict[str, str]]:
    records = list(records)
    if len(records) < count:
        raise DataError(f"Expected at least {count} examples in {name}, got {len(records)}")
    return random.Random(seed).sample(records, count)


def random_texts(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return random words; lengths log-normal, median 7, mean 10, at most 50 (as SST-2's training set)."""
    rng = random.Random(seed)
    records = []
    for _ in range(count):
        length = max(1, min(50, round(rng.lognormvariate(1.95, 0.8))))
        words = " ".join(_word(rng.randrange(4000)) for _ in range(length))
        records.append({"text": words, "label": rng.choice(LABELS)})
    return records


def settings_for(
    source: ModelSource,
    kind: str,
    *,
    private: bool,
    batch_size: int,
    local_steps: int,
    max_tokens: int,
    prefix_length: int,
    max_length: int = MAX_LENGTH,
    device: str = "auto",
    adapter: dict[str, Any] | None = None,
) -> Settings:
    """Return the settings of one local round at example level (or without privacy) on two classes.

    Args:
        adapter: the section ``[adapter]``; None: a prefix.
    """
    tree: dict[str, Any] = {
        "name": "benchmark",
        "model": {"name": source.folder, "device": device},
        "prefix": {"length": prefix_length, "phrase": PHRASE},
        "task": {"labels": LABELS, "max_length": max_length},
        "client": {
            "local_steps": local_steps,
            "batch_size": batch_size,
            "learning_rate": 0.1,
            "max_tokens": max_tokens,
        },
        "privacy": {"mode": "dp", "noise_multiplier": 1.0} if private else {"mode": "none"},
    }
    if kind == "decoder":
        tree["task"] |= {"label_words": LABEL_WORDS, "prompt": PROMPT}
    if adapter is not None:
        tree["adapter"] = adapter
    return Settings.model_validate(tree)
