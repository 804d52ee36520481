"""The teacher on the server (:mod:`fedllm.flatness.teacher`): made before the first round, pulls after each.

Guarantee: with the teachers ``ema`` and ``public``, unchanged, by post-processing; see there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from fedllm.flatness.teacher import EmaTeacher, Teacher, make_distillation
from fedllm.settings import Settings
from fedllm.tunable import Tunable
from server.replies import RunStopped

PREFIX = "teacher."
"""Of the teacher's tensors in a checkpoint's state."""


class TeacherLink:
    """Joins a teacher to the rounds of a run."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def pull(
        self, params: Mapping[str, Tensor], server_round: int
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The model at the end of the round, and what the round's record tells of it: seconds, the
        distance to the teacher before, the divergence of the answers before."""
        began = time.monotonic()
        pulled = self.teacher.pull(params, server_round)
        self.teacher.observe(pulled)
        seconds = time.monotonic() - began
        return pulled, {"teacher_seconds": seconds, **self.teacher.told}

    def keep_layers(self, positions: Sequence[int], tunable: Tunable | None = None) -> None:
        """See :meth:`fedllm.flatness.teacher.Teacher.keep_layers`."""
        self.teacher.keep_layers(positions, tunable)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint's state."""
        return {PREFIX + name: value for name, value in self.teacher.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`, from a checkpoint's whole state.

        Raises:
            KeyError: a tensor is missing.
        """
        found = {n.removeprefix(PREFIX): v for n, v in state.items() if n.startswith(PREFIX)}
        self.teacher.load_state(found)


def make_teacher(
    settings: Settings, params: Mapping[str, Tensor], tunable: Tunable
) -> TeacherLink | None:
    """The teacher that the settings ask for; None for none.

    Args:
        params: the parameters before training.

    Raises:
        RunStopped: there is no public text as the settings name it.
    """
    teacher = settings.teacher
    if teacher.kind == "none":
        return None
    try:
        distillation = make_distillation(settings, tunable)
    except ValueError as error:
        raise RunStopped(f"No teacher: {error}") from None
    if teacher.kind != "ema":
        raise RunStopped(f"Expected teacher.kind=ema, got teacher.kind={teacher.kind}")
    device = tunable.backbone.device
    return TeacherLink(EmaTeacher(teacher, params, device=device, distillation=distillation))
