"""Tasks: how a record becomes model input, a loss per example, and metrics."""

from __future__ import annotations

from typing import Literal

from fedllm.models.backbone import Backbone
from fedllm.settings.sections import TaskSettings
from fedllm.tasks.base import Params, Task
from fedllm.tasks.decoder_classification import LabelWordClassification
from fedllm.tasks.encoder_classification import HeadClassification
from fedllm.tasks.generation import Generation

__all__ = ["Params", "Task", "make_task", "task_kind"]


def task_kind(settings: TaskSettings) -> Literal["decoder"] | None:
    """The kind of backbone that the task's wording asks for: "decoder", or None for either."""
    if settings.kind == "generation" or settings.label_words is not None:
        return "decoder"
    return None


def make_task(settings: TaskSettings, backbone: Backbone, prefix_length: int) -> Task:
    """The task for this backbone.

    Raises:
        ValueError: the settings lack what this kind of backbone needs; the message names it.
    """
    if settings.kind == "generation":
        return Generation(settings, backbone, prefix_length)
    if backbone.kind == "encoder":
        return HeadClassification(settings, backbone, prefix_length)
    return LabelWordClassification(settings, backbone, prefix_length)
