"""Adaptive clipping at a silo: the norm of the round comes with its task, the noisy share goes back.

Guarantee: that of :mod:`fedllm.training.adaptive_clip`; the share is part of what the round's event counts.
"""

from __future__ import annotations

from fedllm import messages as names
from fedllm.silo.extensions.base import Answer, SiloExtension
from fedllm.silo.task import SiloTask
from fedllm.silo.task_form import TaskForm, positive
from fedllm.training.mechanism import Mechanism
from fedllm.training.steps import LocalResult


class SiloClip(SiloExtension):
    """Clips at the norm that the server sends."""

    def brings(self, kind: str) -> TaskForm:
        return TaskForm({names.CLIP: positive} if kind == names.TRAIN else {})

    def mechanism(self, mechanism: Mechanism, task: SiloTask) -> Mechanism:
        """Return the mechanism at this norm.

        Raises:
            ValueError: the norm is out of range.
        """
        return mechanism.at_clip(task.extras[names.CLIP])

    def reply(self, task: SiloTask, result: LocalResult) -> Answer:
        return Answer() if result.below is None else Answer(numbers={names.BELOW: result.below})
