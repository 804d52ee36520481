"""A teacher's steps: closeness in closed form, distillation against a slow oracle, layers dropped."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedllm.flatness.distillation import Distillation, divergences
from fedllm.flatness.teacher import EmaTeacher, Teacher
from fedllm.settings.flatness import TeacherSettings
from fedllm.tasks.base import expand_params
from fedllm.training.tunable import Tunable, initial_params, shared_tunable

Make = Callable[..., Any]


def section(**changes: Any) -> TeacherSettings:
    return TeacherSettings.model_validate({"kind": "ema"} | changes)


def tensors(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "head.bias": torch.randn(3, generator=rng),
        "prefix": torch.randn(4, 2, 1, 2, 3, generator=rng),
    }


def near(first: Tensor, second: Tensor, tolerance: float = 1e-6) -> bool:
    return torch.allclose(first.double(), second.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("rate", "strength", "steps"), [(1.0, 0.3, 1), (0.5, 0.2, 7), (2.0, 0.5, 2)]
)
def test_closeness_equals_its_closed_form(rate: float, strength: float, steps: int) -> None:
    """k gradient steps on lambda/2 |w - w'|^2 give w' + (1 - rate lambda)^k (w - w')."""
    settings = section(learning_rate=rate, strength=strength, steps=steps)
    model, weights = tensors(0), tensors(1)
    before = {name: value.clone() for name, value in model.items()}
    teacher = Teacher(settings, weights)
    moved = teacher.pull(model, 1)
    factor = (1 - rate * strength) ** steps
    for name, value in moved.items():
        expected = weights[name].double() + factor * (model[name] - weights[name]).double()
        assert near(value, expected)
        assert torch.equal(model[name], before[name]), "the caller's tensors stay as they are"
    flat = torch.cat([(model[n] - weights[n]).reshape(-1).double() for n in sorted(model)])
    assert teacher.told == {"teacher_distance": pytest.approx(float(flat.norm()), rel=1e-12)}


def test_average_is_the_recursion_over_the_models_it_saw() -> None:
    teacher = EmaTeacher(section(decay=0.8, strength=0.5), tensors(0))
    expected = tensors(0)
    for t in range(1, 5):
        seen = tensors(t)
        teacher.observe(seen)
        expected = {n: 0.8 * v.double() + 0.2 * seen[n].double() for n, v in expected.items()}
    for name, value in teacher.weights.items():
        assert near(value, expected[name])
    other = EmaTeacher(section(decay=0.8, strength=0.5), tensors(0))
    other.load_state(teacher.state())
    assert all(torch.equal(other.weights[n], teacher.weights[n]) for n in expected)


def test_nothing_moves_before_the_start() -> None:
    teacher = EmaTeacher(section(start=2, strength=1.0), tensors(0))
    model = tensors(1)
    for server_round in (1, 2):
        moved = teacher.pull(model, server_round)
        assert all(torch.equal(moved[n], model[n]) for n in model)
        assert teacher.told == {}
    moved = teacher.pull(model, 3)
    assert all(near(moved[n], teacher.weights[n]) for n in model)


def test_dropped_layers_leave_the_teacher() -> None:
    teacher = EmaTeacher(section(strength=0.5), tensors(0))
    with pytest.raises(ValueError, match="Expected a teacher with the tensors"):
        teacher.pull(sliced(tensors(1), [0, 2]), 1)
    teacher.keep_layers([0, 1, 2, 3], [0, 2])
    pulled = teacher.pull(sliced(tensors(1), [0, 2]), 1)
    whole = EmaTeacher(section(strength=0.5), tensors(0)).pull(tensors(1), 1)
    assert all(torch.equal(pulled[n], sliced(whole, [0, 2])[n]) for n in whole)


def sliced(params: dict[str, Tensor], positions: list[int]) -> dict[str, Tensor]:
    return params | {"prefix": params["prefix"][positions]}


def test_divergence_equals_a_slow_sum() -> None:
    rng = torch.Generator().manual_seed(3)
    ours, theirs = (torch.randn(2, 3, 4, generator=rng) for _ in range(2))
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    found = divergences(ours, theirs, weights, 1.7)
    for b in range(2):
        total = 0.0
        for n in range(3):
            p = slow_softmax(theirs[b, n].tolist(), 1.7)
            q = slow_softmax(ours[b, n].tolist(), 1.7)
            kl = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
            total += float(weights[b, n]) * kl
        assert float(found[b]) == pytest.approx(1.7**2 * total, rel=1e-5)
    assert float(divergences(ours, ours, weights, 1.7).abs().max()) < 1e-6


def slow_softmax(scores: list[float], temperature: float) -> list[float]:
    powers = [math.exp(score / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


TASKS = {
    "encoder": {},
    "decoder": {"task.label_words": ["w5", "w6"], "task.prompt": "w4 {text} w7"},
    "generation": {"task.kind": "generation", "task.labels": None, "task.target": "answer"},
}


@pytest.fixture
def distillation(
    tiny_settings: Make, decoder_folder: Path, word_records: Make
) -> Callable[[str], tuple[Distillation, dict[str, Tensor], dict[str, Tensor]]]:
    """Of a task: the distillation on twelve examples, a model and a teacher."""

    def make(kind: str) -> tuple[Distillation, dict[str, Tensor], dict[str, Tensor]]:
        changes: dict[str, Any] = dict(TASKS[kind])
        if kind != "encoder":
            changes["model.name"] = str(decoder_folder)
        settings = tiny_settings(**changes)
        tunable = shared_tunable(settings)
        features = tunable.task.features(word_records(12, seed=5))
        found = Distillation(tunable, features, 2.0, 12, 60, seed=1)
        models = []
        for seed in (0, 1):
            rng = torch.Generator().manual_seed(seed)
            start = initial_params(tunable, settings)
            shaped = {n: torch.randn(v.shape, generator=rng) * 0.5 for n, v in start.items()}
            models.append(shaped)
        return found, models[0], models[1]

    return make


def slow_divergence(
    tunable: Tunable, params: dict[str, Tensor], teacher: dict[str, Tensor], features: Any
) -> float:
    """Mean over the examples, one at a time, without micro-batches."""
    total = 0.0
    for feature in features:
        batch = tunable.task.collate([feature])
        with torch.no_grad():
            ours, weights = tunable.scores(expand_params(params, 1), batch)
            theirs, _ = tunable.scores(expand_params(teacher, 1), batch)
        assert float(weights.sum()) == pytest.approx(1.0)
        total += float(divergences(ours.double(), theirs.double(), weights.double(), 2.0))
    return total / len(features)


@pytest.mark.parametrize("kind", TASKS)
def test_distillation_gradient_equals_differences_of_the_divergence(
    kind: str, distillation: Any
) -> None:
    found, params, teacher = distillation(kind)
    gradient, mean = found.gradient(params, teacher, found.features)
    assert mean == pytest.approx(
        slow_divergence(found.tunable, params, teacher, found.features), rel=1e-4
    )
    assert mean > 1e-3
    rng = torch.Generator().manual_seed(9)
    step = 0.01
    for _ in range(4):
        direction = {n: torch.randn(v.shape, generator=rng) for n, v in params.items()}
        ahead, behind = (
            slow_divergence(
                found.tunable,
                {n: v + sign * step * direction[n] for n, v in params.items()},
                teacher,
                found.features,
            )
            for sign in (1, -1)
        )
        slope = sum(float((gradient[n] * direction[n]).sum()) for n in params)
        assert slope == pytest.approx((ahead - behind) / (2 * step), rel=0.02, abs=2e-4)


@pytest.mark.parametrize("kind", TASKS)
def test_distillation_alone_brings_the_answers_together(kind: str, distillation: Any) -> None:
    found, params, teacher = distillation(kind)
    rate = 0.2 if kind == "encoder" else 2.0
    settings = section(strength=0.0, distillation=1.0, steps=30, learning_rate=rate)
    pull = Teacher(settings, teacher, distillation=found)
    moved = pull.pull(params, 1)
    before = slow_divergence(found.tunable, params, teacher, found.features)
    after = slow_divergence(found.tunable, dict(moved), teacher, found.features)
    assert pull.told["teacher_divergence"] == pytest.approx(before, rel=1e-4)
    assert after < 0.9 * before


def test_batches_differ_by_round_and_step_and_hold_each_example_once(distillation: Any) -> None:
    found, _, _ = distillation("encoder")
    found.batch_size = 8
    drawn = {
        (r, s): tuple(id(feature) for feature in found.batch(r, s)) for r in (1, 2) for s in (0, 1)
    }
    assert len(set(drawn.values())) == 4
    assert all(len(set(batch)) == 8 for batch in drawn.values())
    assert tuple(id(f) for f in found.batch(2, 1)) == drawn[2, 1]


def test_distillation_needs_public_text() -> None:
    with pytest.raises(ValueError, match=r"teacher\.distillation"):
        Teacher(section(distillation=1.0), tensors(0))
