"""The phrase that a prefix begins with by default: of the task's public settings, and of no other task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedllm.settings.io import parse_settings, to_toml
from fedllm.settings.kinds import TASKS
from fedllm.settings.sections import PrefixSettings, TaskSettings
from fedllm.training.tunable import initial_params, shared_tunable


@pytest.mark.parametrize(
    "kind", ["classification", "generation", "chat", "multilabel", "regression", "tokens"]
)
def test_it_names_no_task_that_it_does_not_know(kind: str) -> None:
    own: dict[str, Any] = {}
    if TASKS[kind].names_labels:
        own["labels"] = ("spam", "ham")
    if kind == "regression":
        own["target_range"] = (0.0, 1.0)
    phrase = TaskSettings(kind=kind, **own).phrase
    assert "sentiment" not in phrase.lower()
    assert "neutral" not in phrase
    assert ("spam, ham" in phrase) == TASKS[kind].names_labels
    assert PrefixSettings().phrase is None


def test_many_labels_are_cut_short() -> None:
    phrase = TaskSettings(kind="classification", labels=tuple(f"c{i}" for i in range(500))).phrase
    assert "c19." in phrase
    assert "c20" not in phrase


def test_a_prefix_begins_with_the_tasks_phrase_unless_one_is_named(
    tiny_settings: Callable[..., Any],
) -> None:
    def prefix(**changes: Any) -> torch.Tensor:
        settings = tiny_settings(**{"prefix.init": "phrase", "prefix.length": 12, **changes})
        return initial_params(shared_tunable(settings), settings)["prefix"]

    task = tiny_settings().task
    assert task.phrase.endswith("low, high.")
    assert torch.equal(prefix(), prefix(**{"prefix.phrase": task.phrase}))
    assert not torch.equal(prefix(), prefix(**{"prefix.phrase": "w4 w5 w6 w7"}))


def test_settings_without_a_phrase_survive(tiny_settings: Callable[..., Any]) -> None:
    import tomllib

    settings = tiny_settings()
    assert settings.prefix.phrase is None
    assert parse_settings(tomllib.loads(to_toml(settings))) == settings
