"""Refuse a model in which one example's gradient depends on its batch mates, before it is trained.

Per-example clipping needs gradients that are functions of one example. Models can couple the examples of a batch:
batch statistics, experts with a capacity, quantisation or scaling by a batch-wide maximum, position tables chosen
by the longest sequence, dropout. Their code does not say so in one place; so it is measured, on examples of public
random tokens: one alone, among others of its bucket, and after others.

Rounding is measured too, and a few units of it are let through: kernels that are chosen by the number of rows round
differently. Where such a choice is known it is taken away (:mod:`fedllm.models.precision`, :mod:`fedllm.data.shapes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.models.embedded import ModelError
from fedllm.models.rotary import rotary_limit
from fedllm.training.gradients import per_example_gradients
from fedllm.training.tunable import Tunable

MATES = 4
_TOKENS = 2**30
"""Of a micro-batch: all examples of a bucket together."""
_measured: WeakKeyDictionary[Tunable, Independence] = WeakKeyDictionary()


@dataclass(frozen=True)
class Independence:
    """Measurement: the largest difference between one example's gradient alone and in a batch, over its norm; 0 means
    equal bits."""

    difference: float


def require_independence(tunable: Tunable, initial: Mapping[str, Tensor]) -> Independence:
    """Measure whether examples are independent, once a process for the same tunable.

    Args:
        initial: what training starts from.

    Raises:
        ModelError: they are not, to rounding in the model's number format; the model is named.
    """
    found = _measured.get(tunable)
    if found is None:
        found = _measured[tunable] = Independence(measure_difference(tunable, initial))
    dtype = tunable.backbone.dtype
    tolerance = torch.finfo(dtype).eps ** 0.5
    if not found.difference <= tolerance:
        raise ModelError(
            f"Expected a model in which an example's gradient does not depend on its batch mates, got "
            f"model={tunable.backbone.name!r}: among others the gradient of one differs by "
            f"{found.difference:.2g} of its norm (at most {tolerance:.2g} is rounding in {dtype}). Batch "
            "statistics, experts with a capacity, batch-wide scaling and dropout do that; clipping would bound "
            "nothing"
        )
    return found


def measure_difference(tunable: Tunable, initial: Mapping[str, Tensor]) -> float:
    """Return the largest difference between an example's gradient alone and among others, over its norm."""
    tunable = tunable.without_reuse()  # what is kept would hide a difference
    rng = torch.Generator().manual_seed(0)
    device = tunable.backbone.device
    params = {
        name: (value + 0.1 * torch.randn(value.shape, generator=rng)).to(device)
        for name, value in initial.items()
    }
    worst, beyond = 0.0, _length_beyond_tables(tunable)
    for low, high in _length_pairs(tunable):
        lengths = [low, high, *[(low + high) // 2] * (MATES - 1)]
        features = [_random_feature(tunable, length, rng) for length in lengths]
        alone = [_gradients(tunable, params, [feature]) for feature in features[:2]]
        among = _gradients(tunable, params, features)
        if beyond is not None:
            _gradients(tunable, params, [_random_feature(tunable, beyond, rng)])
        again = _gradients(tunable, params, features[:1])
        for row, expected in ((0, alone[0]), (1, alone[1])):
            worst = max(worst, _difference(among[row], expected[0]))
        worst = max(worst, _difference(again[0], alone[0][0]))
    return worst


def _length_pairs(tunable: Tunable) -> list[tuple[int, int]]:
    """Shortest and longest length of the smallest, a middle and the largest bucket of the task."""
    task = tunable.task
    longest = task.settings.max_length
    if task.longest_input is not None:
        longest = max(2, min(longest, task.longest_input))
    buckets: dict[int, list[int]] = {}
    for length in range(2, longest + 1):
        buckets.setdefault(task.shapes.bucket_length(length), []).append(length)
    ends = [(lengths[0], lengths[-1]) for lengths in buckets.values()]
    chosen = sorted({0, len(ends) // 2, len(ends) - 1})
    return [ends[i] for i in chosen] or [(2, 2)]


def _length_beyond_tables(tunable: Tunable) -> int | None:
    """Return a length at which position tables that depend on it change; None if there are none, or it is long."""
    limit = rotary_limit(tunable.backbone.model)
    return None if limit is None or limit > 512 else limit + 2


def _random_feature(tunable: Tunable, length: int, rng: torch.Generator) -> Feature:
    size = int(tunable.backbone.model.get_input_embeddings().weight.shape[0])
    ids = torch.randint(0, size, (length,), generator=rng).tolist()
    pad = tunable.backbone.tokenizer.pad_token_id
    ids = [i if i != pad else (i + 1) % size for i in ids]
    return tunable.task.probe(ids)


def _gradients(
    tunable: Tunable, params: Mapping[str, Tensor], features: list[Feature]
) -> list[Tensor]:
    rows: list[Tensor] = [torch.empty(0)] * len(features)
    for group in tunable.task.batches(features, _TOKENS):
        batch = tunable.task.collate([features[i] for i in group])
        found = per_example_gradients(tunable, params, batch)
        flat = torch.cat([found[name].flatten(1) for name in sorted(found)], dim=1)
        for place, row in zip(group, flat.double().cpu(), strict=True):
            rows[place] = row
    return rows


def _difference(value: Tensor, expected: Tensor) -> float:
    if torch.equal(value.isnan(), expected.isnan()) and torch.equal(
        value.nan_to_num(), expected.nan_to_num()
    ):
        return 0.0
    return float((value - expected).norm() / expected.norm().clamp(min=1e-30))
