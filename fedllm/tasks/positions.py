"""Check that the longest example a task allows fits the model, from public numbers alone."""

from __future__ import annotations

from typing import Any

from fedllm.models.backbone import Backbone
from fedllm.models.embedded import ModelError
from fedllm.settings.experiment import Settings
from fedllm.tasks.base import Task
from fedllm.tasks.generation import Generation


def check_positions(settings: Settings, backbone: Backbone, task: Task, prefix: int) -> None:
    """Refuse a task whose longest example would go beyond the model's positions or its sliding window.

    Otherwise one long record makes a step fail, but only when it is sampled.

    Args:
        prefix: length of the prefix in front; 0 for none.

    Raises:
        ModelError: it would; the settings and the model's limit are named.
    """
    longest = task.longest
    if longest is None:
        return
    parts = [f"task.max_length={settings.task.max_length}"]
    if settings.task.max_prompt is not None:
        parts.append(f"task.max_prompt={settings.task.max_prompt}")
    if isinstance(task, Generation):
        writes = settings.evaluation.max_new_tokens if settings.evaluation.generate else 0
        longest = max(longest, longest - settings.task.max_length + writes)
        parts.append(f"evaluation.max_new_tokens={settings.evaluation.max_new_tokens}")
    if backbone.kind == "decoder" and prefix:
        longest += prefix
        parts.append(f"prefix.length={prefix}")
    limits = {"positions": backbone.max_positions}
    if prefix and backbone.kind == "decoder":
        limits["tokens in its sliding window"] = _window(backbone)
    for what, limit in limits.items():
        if limit is not None and longest > limit:
            raise ModelError(
                f"Expected examples of at most {limit} {what} for model.name={backbone.name!r}, the prefix "
                f"counted in; the settings allow {longest} ({', '.join(parts)})"
            )


def _window(backbone: Backbone) -> int | None:
    """Return the sliding window of the model's attention, or None if no layer has one."""
    config: Any = backbone.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    if layers is not None and "sliding_attention" not in layers:
        return None
    return int(window)
