"""The estimate of training's memory against what PyTorch keeps, and the refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedllm.models import memory as device_memory
from fedllm.models.backbone import load_backbone
from fedllm.models.loading.placement import resolve_device
from fedllm.models.memory import (
    DeviceMemoryError,
    free_bytes,
    require_room_for_weights,
    weights_bytes,
)
from fedllm.training.gradients import per_example_gradients
from fedllm.training.memory import require_room_for_training, training_bytes
from fedllm.training.tunable import Tunable, initial_params, make_tunable

Make = Callable[..., Any]
CPU = torch.device("cpu")


def kept_bytes(tunable: Tunable, settings: Any, records: list[dict[str, Any]]) -> tuple[int, int]:
    """Bytes that differentiating one micro-batch saves beside the weights, and the micro-batch's tokens."""
    features = tunable.task.features(records)
    batch = tunable.task.collate(features)
    weights = {p.untyped_storage().data_ptr() for p in tunable.backbone.model.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage  # held, so that no other takes its address
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        per_example_gradients(tunable, initial_params(tunable, settings), batch)
    return sum(storage.nbytes() for storage in seen.values()), batch.input_ids.numel()


@pytest.mark.parametrize("kind", ["encoder", "decoder", "generation"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_is_above_what_is_kept_and_below_three_times_it(
    kind: str,
    dtype: str,
    tiny_settings: Make,
    decoder_folder: Path,
    word_records: Callable[..., list[dict[str, Any]]],
) -> None:
    records = word_records(40, 5)
    changes: dict[str, Any] = {"model.dtype": dtype, "client.batch_size": 20}
    if kind != "encoder":
        changes |= {"model.name": str(decoder_folder), "task.prompt": "{text}"}
    if kind == "decoder":
        changes |= {"task.label_words": ["w10", "w11"]}
    if kind == "generation":
        changes |= {"task.kind": "generation", "task.target": "answer", "task.labels": None}
    settings = tiny_settings(**changes)
    tunable = make_tunable(settings)
    kept, tokens = kept_bytes(tunable, settings, records)
    whole = settings.model_copy(
        update={"client": settings.client.model_copy(update={"max_tokens": tokens})}
    )
    assert kept < training_bytes(whole, tunable) < 3 * kept


def test_it_grows_with_what_it_depends_on(tiny_settings: Make) -> None:
    def estimate(**changes: Any) -> int:
        settings = tiny_settings(**changes)
        return training_bytes(settings, make_tunable(settings))

    base = estimate()
    assert estimate(**{"client.max_tokens": 8192}) > 1.9 * base
    assert estimate(**{"prefix.length": 16}) > base
    assert estimate(**{"model.dtype": "bfloat16"}) < base


def test_training_that_does_not_fit_is_refused_with_both_numbers(
    tiny_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(**{"client.max_tokens": 10**9})
    tunable = make_tunable(settings)
    with pytest.raises(
        DeviceMemoryError, match=r"Expected .* GiB free on cpu.*max_tokens=1000000000"
    ):
        require_room_for_training(settings, tunable)
    require_room_for_training(tiny_settings(), tunable)
    monkeypatch.setattr(device_memory, "_left_in_group", lambda: 2**28)
    with pytest.raises(DeviceMemoryError, match=r"got 0\.25 GiB"):
        require_room_for_training(tiny_settings(), tunable)


def test_weights_that_do_not_fit_are_not_loaded(
    encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(encoder_folder.glob("*.safetensors"))
    loaded = load_backbone(str(encoder_folder), device="cpu")
    held = sum(p.numel() for p in loaded.model.state_dict().values())
    found = weights_bytes(files, torch.bfloat16)
    assert found is not None
    assert 2 * held <= found <= 4 * held  # the pooler is left out when loaded
    assert weights_bytes([Path("pytorch_model.bin")], torch.float32) is None
    assert weights_bytes([], torch.float32) is None
    monkeypatch.setattr(device_memory, "_available", lambda: found)
    with pytest.raises(DeviceMemoryError, match=r"in float32, got 0\.00 GiB"):
        load_backbone(str(encoder_folder), device="cpu", dtype="float32")
    monkeypatch.undo()
    require_room_for_weights("x", files, torch.float32, CPU)


def test_free_memory_is_read() -> None:
    free = free_bytes(CPU)
    assert 2**20 < free < 2**50


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="cuda:1"):
        resolve_device("cuda:1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"with {count} GPUs"):
        resolve_device(f"cuda:{count}")
    device = resolve_device("cuda:0")
    whole = free_bytes(device)
    device_memory.limit_device(device, 1.0)
    assert free_bytes(device) <= 2**30 < whole
    with pytest.raises(ValueError, match=r"model\.memory"):
        device_memory.limit_device(device, 10_000.0)
