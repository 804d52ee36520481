"""The non-private teacher at a silo: its raw update leaves beside the model's (``teacher.kind = "nonprivate"``).

Guarantee: none. The account counts an event without a guarantee in each round
(:func:`fedllm.flatness.duplicate.duplicate_events`), by the same setting that makes this extension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedllm import messages as names
from fedllm.budget.account import SiloAccount
from fedllm.data.batches import Feature
from fedllm.flatness.duplicate import duplicate_update
from fedllm.silo.extensions.base import Make, SiloExtension
from fedllm.silo.task import SiloTask
from fedllm.silo.task_form import TaskForm
from fedllm.training.steps import StepPlan, Streams


class SiloDuplicate(SiloExtension):
    """Trains the duplicate that comes with a task.

    Args:
        plan: of the local steps.
    """

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan

    def brings(self, kind: str) -> TaskForm:
        train = kind == names.TRAIN
        return TaskForm(tensors=frozenset({names.DUPLICATE} if train else ()))

    def check(self, task: SiloTask) -> None:
        """Hold the duplicate against the bounds of the model's parameters.

        Raises:
            LimitRefused: it does not fit them.
        """
        if task.kind == names.TRAIN:
            self.run.check(task.extras[names.DUPLICATE], "a duplicate")

    def releases(self, task: SiloTask, account: SiloAccount) -> Mapping[str, Make]:
        duplicate: Any = task.extras[names.DUPLICATE]

        def raw(features: list[Feature], streams: Streams) -> dict[str, Tensor]:
            rate = account.sampling_rate
            return duplicate_update(
                *self.run.tunable.part(duplicate, task.round),
                *(features, self.plan),
                sampling_rate=rate,
                streams=streams,
            )

        return {names.DUPLICATE: raw}
