"""The random directions of a round at a silo that sees a model's outputs alone (``model.access = "black-box"``)."""

from __future__ import annotations

from dataclasses import replace

from fedllm import messages as names
from fedllm.silo.extensions.base import SiloExtension
from fedllm.silo.task import SiloTask
from fedllm.silo.task_form import SEED, TaskForm, text
from fedllm.training.black_box.directions import Directions, DirectionsPlan
from fedllm.training.steps import LocalWork


class SiloDirections(SiloExtension):
    """Draws the directions of a round from the public seed that comes with its task.

    Args:
        plan: the numbers of the directions.
    """

    def __init__(self, plan: DirectionsPlan) -> None:
        self.plan = plan

    def brings(self, kind: str) -> TaskForm:
        if kind != names.TRAIN:
            return TaskForm()
        return TaskForm({names.DIRECTIONS: text(SEED, "32 hexadecimal digits")})

    def prepare(self, work: LocalWork, task: SiloTask) -> LocalWork:
        seed = task.extras[names.DIRECTIONS]
        return replace(work, directions=Directions(self.plan, work.params, seed))
