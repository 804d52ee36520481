"""The teacher trained on public text: it learns, goes on to the same bits, and keeps to its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.flatness.public_teacher import PublicTraining, TeacherError, public_teacher
from fedllm.settings.experiment import Settings
from fedllm.training.tunable import Tunable, initial_params, shared_tunable

Made = tuple[Settings, Tunable, dict[str, Tensor], list[Feature]]


@pytest.fixture
def made(tiny_settings: Callable[..., Any], word_records: Callable[..., Any]) -> Made:
    settings = tiny_settings(
        **{
            "teacher.public_steps": 60,
            "teacher.batch_size": 16,
            "teacher.public_learning_rate": 0.05,
        }
    )
    tunable = shared_tunable(settings)
    features = tunable.task.features(word_records(80, seed=700))
    return settings, tunable, initial_params(tunable, settings), features


def train(file: Path, made: Made, tell: Callable[[int, float], None] = lambda s, x: None) -> Any:
    settings, tunable, start, features = made
    return public_teacher(file, tunable, start, lambda: features, PublicTraining.of(settings), tell)


def never() -> list[Feature]:
    raise AssertionError("a finished teacher needs no text")


def test_it_learns_the_task_and_leaves_the_start_alone(made: Made, tmp_path: Path) -> None:
    settings, tunable, start, features = made
    before = {name: value.clone() for name, value in start.items()}
    told: list[tuple[int, float]] = []
    weights = train(tmp_path / "t.safetensors", made, lambda s, x: told.append((s, x)))
    assert [step for step, _ in told] == list(range(1, 61))
    losses = [tunable.evaluate(params, features, 4096)["loss"] for params in (start, dict(weights))]
    assert told[0][1] == pytest.approx(losses[0], abs=1e-5), "the head starts at zero"
    assert losses[1] < 0.8 * losses[0]
    assert all(torch.equal(start[n], before[n]) for n in start)
    again = public_teacher(
        tmp_path / "t.safetensors", tunable, start, never, PublicTraining.of(settings), print
    )
    assert all(torch.equal(again[n], weights[n]) for n in weights)


@pytest.mark.parametrize("at", [1, 25, 40])
def test_an_interrupted_training_goes_on_to_the_same_bits(
    at: int, made: Made, tmp_path: Path
) -> None:
    class Halt(Exception):
        pass

    def tell(step: int, loss: float) -> None:
        if step == at:
            raise Halt

    whole = train(tmp_path / "whole.safetensors", made)
    with pytest.raises(Halt):
        train(tmp_path / "parts.safetensors", made, tell)
    steps: list[int] = []
    parts = train(tmp_path / "parts.safetensors", made, lambda s, x: steps.append(s))
    assert steps == list(range(at + 1, 61)), "no step twice"
    assert all(torch.equal(whole[n], parts[n]) for n in whole)
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_layers_that_were_dropped_leave_a_teacher_on_disk(
    made: Made, tmp_path: Path, tiny_settings: Callable[..., Any]
) -> None:
    file = tmp_path / "t.safetensors"
    weights = train(file, made)
    fewer = tiny_settings(**{"prefix.layers": [1], "teacher.public_steps": 60})
    tunable = shared_tunable(fewer)
    kept = public_teacher(
        file, tunable, initial_params(tunable, fewer), never, PublicTraining.of(fewer), print
    )
    assert torch.equal(kept["prefix"], weights["prefix"][1:])
    assert torch.equal(kept["head.weight"], weights["head.weight"])


def test_a_damaged_teacher_is_refused(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    train(file, made)
    tensors = load_file(file)
    for damage in (
        {n: v for n, v in tensors.items() if n != "first.prefix"},
        tensors | {"weights.prefix": tensors["weights.prefix"][:, :, :1].contiguous()},
        tensors | {"layers": torch.tensor([5])},
    ):
        save_file(damage, file)
        with pytest.raises(TeacherError, match=r"t\.safetensors"):
            train(file, made)
    file.write_bytes(b"no tensors")
    with pytest.raises(TeacherError, match=r"t\.safetensors"):
        train(file, made)
