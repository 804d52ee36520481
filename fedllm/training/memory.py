"""Check before training that it fits a device.

The estimate is of what one micro-batch takes beside the weights, from shapes alone and for each adapter
(:mod:`fedllm.training.batch.footprint`). It is meant to be above the truth, and below twice of it:
``python -m simulations.benchmarks.memory`` compares (docs/results/memory.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedllm.models.memory import RESERVE, DeviceMemoryError, dtype_word, free_bytes, gibibytes
from fedllm.settings.experiment import Settings
from fedllm.training.batch.footprint import micro_batch_bytes, numbers_of_model
from fedllm.training.tunable import Tunable


def training_bytes(settings: Settings, tunable: Tunable) -> int:
    """Estimate of what the largest micro-batch of training takes beside the weights."""
    client, shapes = settings.client, tunable.task.shapes
    longest = max(1, settings.task.max_length * (1 if settings.task.has_classes else 2))
    numbers = numbers_of_model(
        tunable,
        1,
        client.max_tokens,
        by_example=settings.one_by_one,
        perturbed=settings.awp.form == "per-example",
    )
    silos = settings.privacy.silos.values()
    drawn = None  # where rates are given, and no sizes
    if client.sampling_rate is None and not any(silo.sampling_rate for silo in silos):
        drawn = _most_drawn([client.batch_size, *(silo.batch_size for silo in silos)])
    buckets = {shapes.bucket_length(length) for length in range(1, longest + 1)}
    sizes = []
    for bucket in buckets:
        examples = shapes.most(bucket, client.max_tokens)
        if drawn is not None:
            examples = min(examples, drawn)
        sizes.append(micro_batch_bytes(numbers, shapes.rows(bucket, examples) or examples, bucket))
    return max(sizes)


def _most_drawn(expected: Sequence[int | None]) -> int:
    """Examples that a Poisson batch of these expected sizes hardly ever has more of."""
    size = max(int(size or 1) for size in expected)
    return size + 8 * math.isqrt(size) + 8


def require_room_for_training(settings: Settings, tunable: Tunable) -> None:
    """Refuse to train where one micro-batch does not fit.

    Raises:
        DeviceMemoryError: it does not.
    """
    device = tunable.backbone.device
    needed, free = training_bytes(settings, tunable), free_bytes(device)
    if needed + RESERVE > free:
        raise DeviceMemoryError(
            f"Expected {gibibytes(needed + RESERVE)} free on {device} to train with client.max_tokens="
            f"{settings.client.max_tokens} in {dtype_word(tunable.backbone.dtype)} (an estimate), got "
            f"{gibibytes(free)}: set model.checkpointing=true, lower client.max_tokens (or limits.max_tokens of the silo "
            "config), use a shorter model.dtype, another device, or end what else runs there"
        )
