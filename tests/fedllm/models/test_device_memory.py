"""The estimate of training's memory against what PyTorch keeps, and the refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedllm.data.shapes import Shapes, micro_batches
from fedllm.models import memory as device_memory
from fedllm.models.backbone import load_backbone
from fedllm.models.loading.placement import resolve_device
from fedllm.models.memory import (
    DeviceMemoryError,
    free_bytes,
    require_room_for_weights,
    weights_bytes,
)
from fedllm.training.batch import rows
from fedllm.training.batch.footprint import (
    copied_bytes,
    kept_bytes,
    micro_batch_bytes,
    numbers_of_model,
)
from fedllm.training.batch.rows import COPIES, rows_limit
from fedllm.training.gradients import clipped_gradient_sum, per_example_gradients
from fedllm.training.memory import require_room_for_training, training_bytes
from fedllm.training.tunable import Tunable, initial_params, make_tunable

Make = Callable[..., Any]
CPU = torch.device("cpu")


def numbers_of(tunable: Tunable) -> Any:
    return numbers_of_model(tunable, 1, 4096, by_example=False, perturbed=False)


def saved_bytes(tunable: Tunable, settings: Any, records: list[dict[str, Any]]) -> tuple[int, int]:
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
    kept, tokens = saved_bytes(tunable, settings, records)
    count = len(records)
    numbers = numbers_of(tunable)
    found = kept_bytes(numbers, count, tokens // count) + copied_bytes(numbers, count)
    assert kept < found < 3 * kept
    whole = settings.model_copy(
        update={"client": settings.client.model_copy(update={"max_tokens": tokens})}
    )
    assert training_bytes(whole, tunable) > found


def test_it_grows_with_what_it_depends_on(tiny_settings: Make) -> None:
    def estimate(**changes: Any) -> int:
        settings = tiny_settings(**changes)
        return training_bytes(settings, make_tunable(settings))

    base = estimate()
    more = {"client.batch_size": 10**4}
    assert estimate(**more, **{"client.max_tokens": 8192}) > estimate(**more) > base
    assert estimate(**{"prefix.length": 16}) > base
    assert estimate(**{"model.dtype": "bfloat16"}) < base
    assert estimate(**{"model.checkpointing": True}) < base
    lora = estimate(**{"adapter.form": "lora"})
    assert estimate(**{"adapter.form": "lora", "adapter.layers": [-1]}) < lora
    assert estimate(**{"adapter.form": "ffa-lora"}) < lora
    assert estimate(**{"adapter.form": "head"}) < base
    packed = estimate(**{"adapter.form": "lora", "model.quantization": "8bit"})
    assert lora < packed < 1.1 * lora  # a matrix is unpacked


@pytest.mark.parametrize("form", ["prefix", "lora", "bitfit", "head"])
@pytest.mark.parametrize("by_example", [False, True])
def test_copies_of_a_micro_batch_stay_within_their_bound(
    form: str, by_example: bool, tiny_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are cut, by public numbers alone; gradients of examples are the same bits, and their sum to rounding."""
    changes: dict[str, Any] = {"adapter.form": form, "prefix.init_std": 0.5}
    if by_example:
        changes |= {"awp.form": "per-example", "awp.head": True}
    settings = tiny_settings(**changes)
    tunable = make_tunable(settings)
    adapter, own = tunable.adapter, tunable.task.initial_params()
    limit = rows_limit(adapter, own, by_example=by_example)
    assert limit is not None
    assert tunable.task.rows_limit == limit
    counted = {n: math.prod(shape) for n, shape in adapter.shapes().items()}
    left_out = set() if by_example else adapter.recordable
    size = sum(v for n, v in counted.items() if n not in left_out)
    size += sum(v.numel() for v in own.values())
    assert limit * 4 * size <= COPIES < (limit + 1) * 4 * size
    monkeypatch.setattr(rows, "COPIES", 3 * 4 * size + 1)
    cut = make_tunable(settings, tunable.backbone)
    assert cut.task.rows_limit == 3
    params = {n: v + 0.1 for n, v in initial_params(tunable, settings).items()}
    records = [{"text": f"w{i % 9 + 4} w5 w6", "label": "low"} for i in range(8)]
    features = tunable.task.features(records)
    assert max(map(len, cut.task.batches(features, 4096))) == 3
    sums = [
        clipped_gradient_sum(
            *(model, params, features),
            clip_norm=0.1,
            scales=dict.fromkeys(params, 1.0),
            max_tokens=4096,
        )
        for model in (tunable, cut)
    ]
    assert torch.equal(sums[0].norms, sums[1].norms)
    for a, b in zip(sums[0].sums, sums[1].sums, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_rows_of_a_fixed_shape_are_cut_too() -> None:
    shapes = Shapes(least=16, parts=1, tokens=2048, limit=7)
    assert (shapes.rows(16), shapes.most(16, 4096)) == (7, 7)
    assert (shapes.rows(512), shapes.most(512, 4096)) == (4, 4)
    groups = micro_batches([5] * 20, 4096, shapes)
    assert [len(group) for group in groups] == [7, 7, 6]


def test_the_estimate_of_factors_and_of_copies(tiny_settings: Make) -> None:
    """Many short examples take copies, long ones what is kept of their tokens."""
    settings = tiny_settings(**{"adapter.form": "lora"})
    numbers = numbers_of(make_tunable(settings))
    assert numbers.copied > 0
    assert numbers.inputs == numbers.shared == 0
    assert copied_bytes(numbers, 64) == 64 * copied_bytes(numbers, 1)
    assert micro_batch_bytes(numbers, 64, 8) > micro_batch_bytes(numbers, 8, 64)
    settings = tiny_settings(**{"adapter.form": "full"})
    whole = numbers_of(make_tunable(settings))
    assert whole.inputs > 0
    assert whole.shared > whole.copied


def test_training_that_does_not_fit_is_refused_with_both_numbers(
    tiny_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(**{"client.max_tokens": 10**9, "client.batch_size": 10**8})
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
