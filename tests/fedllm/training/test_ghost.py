"""Clipped sums of gradients that are known by their factors, next to ordinary autograd, one example at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.training.gradients import clipped_gradient_sum, gradient_sum, per_example_gradients
from fedllm.training.tunable import Tunable, initial_params
from privacy.mechanisms.clipping import ClippedSum
from simulations.attacks.batch_mates.architectures import random_records, tiny_tunable
from tests.support.tiny_tunables import alone, shaken

CASES = [
    ("bert", "classification", "last-layers"),
    ("bert", "classification", "full"),
    ("roberta", "classification", "full"),
    ("llama", "generation", "full"),
    ("llama", "classification", "last-layers"),
    ("gpt2", "generation", "full"),  # Conv1D, embeddings that are the output matrix too
    ("gpt2", "classification", "last-layers"),
    ("gpt_neox", "generation", "full"),
]
LENGTHS = [3, 6, 4, 5, 3]


@lru_cache(maxsize=8)
def scene(
    architecture: str, task: str, form: str
) -> tuple[Tunable, dict[str, Tensor], tuple[Feature, ...]]:
    """A model, a point, and examples of one bucket."""
    settings, tunable = tiny_tunable(architecture, torch.float32, task, form)
    point = shaken(initial_params(tunable, settings), size=0.1)
    return tunable, point, tuple(tunable.task.features(random_records(LENGTHS, 1)))


@lru_cache(maxsize=8)
def oracle(architecture: str, task: str, form: str) -> tuple[list[dict[str, Tensor]], list[float]]:
    """Gradients by ordinary autograd, one example at a time, in float64, and their norms."""
    tunable, point, features = scene(architecture, task, form)
    found = [alone(tunable, point, feature) for feature in features]
    found = [{name: value.double() for name, value in own.items()} for own in found]
    return found, [norm_of(own) for own in found]


def norm_of(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(v.double().square().sum()) for v in tensors.values()))


def summed(
    tunable: Tunable, point: Mapping[str, Tensor], features: Any, clip: float, **options: Any
) -> ClippedSum:
    scales = dict.fromkeys(point, 1.0)
    return clipped_gradient_sum(
        *(tunable, point, list(features)),
        **{"clip_norm": clip, "scales": scales, "max_tokens": 512, **options},
    )


def close(found: Tensor, expected: Tensor, size: float) -> bool:
    return float((found.double() - expected).abs().max()) <= 2e-6 * size


@pytest.mark.parametrize("case", CASES)
def test_norms_and_sum_are_those_of_one_example_at_a_time(case: tuple[str, str, str]) -> None:
    tunable, point, features = scene(*case)
    grads, norms = oracle(*case)
    assert len(tunable.task.batches(features, 512)[0]) > 1
    clip = sorted(norms)[len(norms) // 2] * 1.001
    found = summed(tunable, point, features, clip)
    assert sorted(found.norms.tolist()) == pytest.approx(sorted(norms), rel=1e-6)
    assert found.clipped == sum(norm > clip for norm in norms)
    assert (found.count, found.nonfinite) == (len(features), 0)
    for name, total in zip(sorted(point), found.sums, strict=True):
        factors = [min(1.0, clip / norm) for norm in norms]
        expected = sum(f * own[name] for f, own in zip(factors, grads, strict=True))
        assert close(total, torch.as_tensor(expected), clip), name
    assert norm_of(dict(zip(point, found.sums, strict=True))) > clip


@pytest.mark.parametrize("case", CASES)
def test_rows_and_plain_sums_are_those_of_one_example_at_a_time(
    case: tuple[str, str, str],
) -> None:
    tunable, point, features = scene(*case)
    grads, norms = oracle(*case)
    chosen = tunable.task.batches(features, 512)[0]
    rows = per_example_gradients(
        tunable, point, tunable.task.collate([features[i] for i in chosen])
    )
    for name in point:
        for place, i in enumerate(chosen):
            assert close(rows[name][place], grads[i][name], norms[i]), name
    plain = gradient_sum(tunable, point, features, max_tokens=512)
    for name, total in zip(sorted(point), plain, strict=True):
        expected = torch.stack([own[name] for own in grads]).sum(0)
        assert close(total, expected, sum(norms)), name
    silent = {n for n in point if all(float(own[n].abs().max()) < 1e-12 for own in grads)}
    assert not {n for n in silent if not n.endswith("bias")}, silent
