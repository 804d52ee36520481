"""What several test folders share: a tiny encoder and decoder on disk, word files, settings."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.task_identity import TaskIdentity
from ledger_rows import add_rows
from tiny_models import make_tiny_model, make_tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fedllm.run.folder import RunFolder
from simulations.benchmarks.support import tiny
from simulations.in_process import federate

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def task_identity() -> None:
    """Name Flower's task, as its runtime does for an app; a message cannot be made without."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers, four heads of size 4, with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    tiny.save_encoder(folder)
    return folder


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with grouped key/value heads, with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny.save_decoder(folder)
    return folder


@pytest.fixture(scope="session")
def word_records() -> Callable[..., list[dict[str, Any]]]:
    """``word_records(count, seed, silo="")``."""
    return tiny.make_records


@pytest.fixture(scope="session")
def word_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (silos alpha 60, beta 45, gamma 30, delta 24) and validation.jsonl."""
    folder = tmp_path_factory.mktemp("words")
    tiny.save_words(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tree(encoder_folder: Path, word_files: Path) -> Callable[..., dict[str, Any]]:
    """``tiny_tree(**{"section.key": value})``: plain settings of a small seeded experiment."""

    def make(**changes: Any) -> dict[str, Any]:
        return tiny.tree(encoder_folder, word_files, **changes)

    return make


@pytest.fixture(scope="session")
def tiny_settings(tiny_tree: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """``tiny_settings(**{"section.key": value})``: the same as checked settings."""
    from fedllm.settings.io import parse_settings

    return lambda **changes: parse_settings(tiny_tree(**changes))


@pytest.fixture(scope="session")
def random_words_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers with heads of size 16, and a tokenizer for the benchmarks' random words."""
    import torch
    from transformers import BertConfig, BertModel

    from simulations.benchmarks.support import workload

    path = tmp_path_factory.mktemp("random-words-bert")
    torch.manual_seed(0)
    tokenizer = workload.stand_in_tokenizer(encoder=True)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """``tiny_model(architecture, dtype=float64, seed=0)``."""
    return make_tiny_model


@pytest.fixture
def tiny_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """``tiny_tokenizer(bos=False)``."""
    return make_tiny_tokenizer


@pytest.fixture
def make_ledger(tmp_path: Path) -> Callable[..., Path]:
    """``make_ledger((party, event or views, number), ..., unit=, details=)``: the file."""
    return partial(add_rows, tmp_path / "ledger.sqlite")


@pytest.fixture(scope="session")
def in_process() -> Callable[..., str]:
    """``in_process(run, tamper=None, stop=None, callbacks=())``."""
    return federate


@pytest.fixture
def start_run(tiny_settings: Callable[..., Any], tmp_path: Path) -> Callable[..., RunFolder]:
    """``start_run(name, **changes)``: a new run folder of the small experiment."""

    def make(name: str, **changes: Any) -> RunFolder:
        return RunFolder.create(tiny_settings(**changes), tmp_path / name)

    return make
