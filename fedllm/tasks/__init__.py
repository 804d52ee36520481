"""Tasks: how a record becomes model input, a loss per example, and metrics.

A task of another package is added with :func:`register_task`, and used by its name as ``task.kind``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fedllm.models.backbone import Backbone
from fedllm.settings.kinds import TASKS, TaskFacts
from fedllm.settings.sections import TaskSettings
from fedllm.tasks.base import Params, Task
from fedllm.tasks.chat.task import Chat
from fedllm.tasks.decoder_classification import LabelWordClassification
from fedllm.tasks.encoder_classification import HeadClassification
from fedllm.tasks.encoder_decoder import EncoderDecoderGeneration
from fedllm.tasks.generation import Generation
from fedllm.tasks.heads.multilabel import MultiLabel
from fedllm.tasks.heads.regression import Regression
from fedllm.tasks.heads.tokens import TokenTags

__all__ = ["Params", "Task", "TaskFacts", "TaskKind", "make_task", "register_task", "task_kind"]

Make = Callable[[TaskSettings, Backbone, int], Task]


@dataclass(frozen=True)
class TaskKind:
    """A kind of task.

    Attributes:
        name: the value of ``task.kind``.
        make: of the settings, the backbone and the length of the prefix; a subclass of :class:`Task` will do.
        facts: what settings and data must know of it.
    """

    name: str
    make: Make
    facts: TaskFacts


def _classification(settings: TaskSettings, backbone: Backbone, prefix_length: int) -> Task:
    kind = HeadClassification if backbone.kind == "encoder" else LabelWordClassification
    return kind(settings, backbone, prefix_length)


def _generation(settings: TaskSettings, backbone: Backbone, prefix_length: int) -> Task:
    kind = EncoderDecoderGeneration if backbone.kind == "encoder-decoder" else Generation
    return kind(settings, backbone, prefix_length)


_MAKERS: dict[str, Make] = {
    "classification": _classification,
    "generation": _generation,
    "chat": Chat,
    "multilabel": MultiLabel,
    "regression": Regression,
    "tokens": TokenTags,
}


def register_task(kind: TaskKind) -> Callable[[], None]:
    """Add a kind of task to this process.

    Returns:
        A function that takes it away again.

    Raises:
        ValueError: there is one of that name.
    """
    TASKS.add(kind.name, kind.facts)
    _MAKERS[kind.name] = kind.make

    def forget() -> None:
        TASKS.remove(kind.name)
        _MAKERS.pop(kind.name, None)

    return forget


def task_kind(settings: TaskSettings) -> Literal["encoder", "decoder"] | None:
    """Return the kind of backbone that the task asks for; None for either."""
    return "decoder" if settings.label_words is not None else TASKS[settings.kind].backbone


def make_task(settings: TaskSettings, backbone: Backbone, prefix_length: int) -> Task:
    """Return the task for this backbone.

    Raises:
        ValueError: the settings lack what this kind of backbone needs, or need another kind; the message names it.
    """
    needed = TASKS[settings.kind].backbone
    if backbone.kind == "encoder-decoder":
        if settings.kind != "generation":
            raise ValueError(
                f"Expected task.kind=generation for the encoder-decoder model.name={backbone.name!r}, got "
                f"task.kind={settings.kind}"
            )
    elif needed not in (None, backbone.kind):
        words = {"decoder": "a decoder (causal language model)", "encoder": "an encoder"}
        raise ValueError(
            f"Expected {words[str(needed)]} for task.kind={settings.kind}, got "
            f"model.name={backbone.name!r}, which is {words[backbone.kind]}"
        )
    return _MAKERS[settings.kind](settings, backbone, prefix_length)
