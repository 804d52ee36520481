"""Checks of the section ``[task]`` by itself, and the columns that a kind of task has by default."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedllm.settings.kinds import TASKS

_ONLY = {
    "max_prompt": "chat",
    "template": "chat",
    "target_range": "regression",
}
"""Settings that one kind of task alone reads."""


def filled_columns(values: Any) -> Any:
    """Return the values of the section with the columns that its kind has by default, where it names none."""
    if not isinstance(values, Mapping):
        return values
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in TASKS or TASKS[kind].columns is None:
        return values
    text, target = TASKS[kind].columns or ("", "")
    found = {"text": [text], "target": target, **values}
    if TASKS[kind].holds == "messages" and "target" not in values and len(found["text"]) == 1:
        found["target"] = found["text"][0]
    return found


def check_task(task: Any) -> None:
    """Refuse settings of the section that do not go together.

    Args:
        task: the section, a :class:`fedllm.settings.sections.TaskSettings`.

    Raises:
        ValueError: the setting and the kind are named.
    """
    facts = TASKS[task.kind]
    if facts.names_labels:
        _check_labels(task, least=1 if facts.holds == "labels" else 2)
    own = {"messages": "chat", "number": "regression"}.get(facts.holds)
    for setting, kind in _ONLY.items():
        if getattr(task, setting) is not None and own != kind:
            raise ValueError(
                f"Expected no task.{setting} for task.kind={task.kind} (only {kind} reads it), got "
                f"task.{setting}={getattr(task, setting)!r}"
            )
    if facts.holds not in ("class", "text"):
        for setting in ("label_words", "prompt"):
            if getattr(task, setting) is not None:
                raise ValueError(
                    f"Expected no task.{setting} for task.kind={task.kind} (classification and generation by a "
                    f"decoder read it), got task.{setting}={getattr(task, setting)!r}"
                )
    if facts.holds == "messages" and (task.text != (task.target,)):
        raise ValueError(
            f"Expected one column in task.text, and the same in task.target, for task.kind={task.kind} (a conversation "
            f"is one column), got task.text={list(task.text)}, task.target={task.target!r}"
        )
    if facts.holds == "tags" and len(task.text) != 1:
        raise ValueError(
            f"Expected one column in task.text for task.kind={task.kind} (a list of words), got "
            f"task.text={list(task.text)}"
        )
    if facts.holds == "number":
        _check_range(task)


def _check_labels(task: Any, least: int) -> None:
    if not task.labels or len(task.labels) < least:
        raise ValueError(
            f"Expected task.labels with at least {least} {'class' if least == 1 else 'classes'} for task.kind={task.kind}, "
            f"got task.labels={task.labels}"
        )
    if len(set(task.labels)) != len(task.labels):
        raise ValueError(f"Expected distinct task.labels, got {task.labels}")
    if task.label_words is not None and len(task.label_words) != len(task.labels):
        raise ValueError(
            f"Expected as many task.label_words as task.labels ({len(task.labels)}), "
            f"got task.label_words={task.label_words}"
        )


def _check_range(task: Any) -> None:
    given = task.target_range
    if given is None:
        raise ValueError(
            f"Expected task.target_range=[low, high] for task.kind={task.kind} (a public range: errors are measured "
            "in it, and a range taken from the data would tell its extremes), got none"
        )
    low, high = given
    if not (math.isfinite(low) and math.isfinite(high - low) and low < high):
        raise ValueError(f"Expected finite low < high in task.target_range, got {list(given)}")
