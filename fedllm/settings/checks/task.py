"""Checks of the task against other sections: what they need and a kind of task lacks."""

from __future__ import annotations

from fedllm.settings.tree import SettingsTree


def check_task_sections(settings: SettingsTree) -> None:
    """Refuse other sections that need what the kind of task lacks.

    Raises:
        ValueError: both settings are named.
    """
    task, facts = settings.task, settings.task.facts
    if settings.evaluation.by_silos and not facts.accuracy:
        raise ValueError(
            f"Expected evaluation.clients=off for task.kind={task.kind} (the silos' evaluation "
            f"counts correct answers), got evaluation.clients={settings.evaluation.clients}"
        )
    if settings.data.partition in ("dirichlet", "pathological") and not facts.classes:
        raise ValueError(
            f"Expected data.partition=natural, hash or iid for task.kind={task.kind} (an example has no class to "
            f"divide by), got data.partition={settings.data.partition}"
        )
    if not facts.scores and settings.teacher.kind != "none" and settings.teacher.distillation > 0:
        raise ValueError(
            f"Expected teacher.distillation=0 for task.kind={task.kind} (distillation compares shares of answers, and "
            f"a number has none; teacher.strength needs none), got teacher.distillation={settings.teacher.distillation}"
        )
