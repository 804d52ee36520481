"""A release of no data comes before the row: what a server sent that makes it fail costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedllm import messages as names
from fedllm.data.batches import Feature
from fedllm.data.silos import load_federation
from fedllm.silo.answered import answered, throwaway_streams, try_without_data
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.task_errors import TaskFailed, TaskRefused
from fedllm.training.steps import LocalResult
from fedllm.training.tunable import initial_params, shared_tunable

Make = Callable[..., Any]
Task = Callable[[SiloWorker, Any], object]


def ignore(what: str, error: Exception) -> None: ...


def result(**changes: Any) -> LocalResult:
    made = {"update": {"a": torch.zeros(2)}, "noise_std": {"a": 1.0}, "below": 0.5}
    return LocalResult(
        **(made | changes), examples=0, clipped=0, nonfinite=0, median_norm=float("nan")
    )


@pytest.mark.parametrize(
    ("made", "bad"),
    [
        (result(), ""),
        (result(noise_std=None, below=None), ""),
        (result(update={"a": torch.tensor([1.0, float("inf")])}), "a"),
        (result(update={"code": torch.tensor([1], dtype=torch.int8)}), ""),
        (result(noise_std={"b": float("inf")}), "b"),
        (result(below=float("nan")), "below"),
        (torch.tensor([float("nan")]), "the answer"),
        ((1.0, float("inf")), "the answer"),
        ((1, 2), ""),
        ({"a": torch.tensor(float("nan"))}, "a"),
    ],
    ids=str,
)
def test_numbers_that_are_not_finite_are_found(made: Any, bad: str) -> None:
    if bad:
        with pytest.raises(TaskRefused, match=f"got others in {bad}$"):
            try_without_data(lambda streams: made, ignore)
    else:
        try_without_data(lambda streams: made, ignore)


def test_the_throwaway_noise_is_nobodys() -> None:
    """Neither of the seed of any run nor secret; each use has its own."""
    first = throwaway_streams("noise", 0).standard_normal(4)
    assert list(first) == list(throwaway_streams("noise", 0).standard_normal(4))
    assert list(first) != list(throwaway_streams("noise", 1).standard_normal(4))


def test_an_answer_after_the_row_does_not_depend_on_what_raises() -> None:
    noted: list[str] = []

    def note(what: str, error: Exception) -> None:
        noted.append(what)

    def release(features: list[Feature]) -> str:
        if features:
            raise RuntimeError("patient 7")
        return "noise"

    assert answered(release, [Feature([1])], private=True, note=note) == "noise"
    with pytest.raises(TaskFailed):
        answered(release, [Feature([1])], private=False, note=note)
    assert noted == ["a task raised after its row was written"] * 2


HUGE: list[tuple[dict[str, Any], Task]] = [
    ({"privacy.clip": 1e300}, lambda worker, params: worker.train(SiloTask(params, 1, 2))),
    ({"privacy.prefix_scale": 1e-300}, lambda worker, params: worker.train(SiloTask(params, 1, 2))),
    ({"client.learning_rate": 1e300}, lambda worker, params: worker.train(SiloTask(params, 1, 2))),
    ({"privacy.unit": "client", "privacy.clip": 1e300, "privacy.relation": "zero-out"},
     lambda worker, params: worker.train(SiloTask(params, 1, 2))),
    ({"model.access": "black-box", "privacy.clip": 1e300},
     lambda worker, params: worker.train(SiloTask(params, 1, 2, {"directions": "0" * 32}))),
    ({"codec.name": "linear", "codec.statistics_noise": 1e300},
     lambda worker, params: worker.answer(SiloTask(params, 0, 2, kind=names.ASK_STATISTICS))),
    ({"layers.form": "private", "layers.keep": 1, "layers.noise": 1e305, "layers.bound": 1e300},
     lambda worker, params: worker.answer(SiloTask(params, 1, 2, {names.CANDIDATES: (0, 1)}, names.ASK_SCORES))),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "task"), HUGE, ids=[str(changes)[:60] for changes, _ in HUGE])
def test_settings_at_which_arithmetic_ends_cost_no_row(
    changes: dict[str, Any], task: Task, tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(**changes)
    params = initial_params(shared_tunable(settings), settings)
    silo = load_federation(settings).silos[0]
    worker = SiloWorker(settings, silo, run="run", ledger=tmp_path / "ledger.sqlite")
    with pytest.raises((TaskRefused, TaskFailed, ValueError, OverflowError)):
        task(worker, params)
    assert worker.ledger.entries() == []
