"""Compute one public example before anything is spent, to find what would strike every example."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedllm.embedded import ModelError
from fedllm.gradients import per_example_gradients
from fedllm.inputs import Feature
from fedllm.settings import Settings
from fedllm.tasks.base import expand_params
from fedllm.tasks.endpoint_classification import EndpointClassification
from fedllm.tunable import Tunable

WORD = "the"


def public_feature(tunable: Tunable, settings: Settings) -> Feature:
    """An example that is a function of settings and model alone: one word, of the first class."""
    task = settings.task
    record = dict.fromkeys(task.text, WORD)
    record[task.target] = (task.labels or (WORD,))[0] if task.kind == "classification" else WORD
    (feature,) = tunable.task.features([record])
    return feature


def rehearse(tunable: Tunable, params: Mapping[str, Tensor], settings: Settings) -> None:
    """Compute the loss (and where training takes it, the gradient) of a public example.

    Nothing is asked of an endpoint.

    Raises:
        ModelError: it raises; the message is a function of public values, the parameters among them.
    """
    if isinstance(tunable.task, EndpointClassification):
        return
    device = tunable.backbone.device
    try:
        batch = tunable.task.collate([public_feature(tunable, settings)])
        point = {n: params[n].to(device=device, dtype=torch.float32) for n in sorted(params)}
        if settings.model.access == "black-box":
            with torch.inference_mode():
                tunable.losses(expand_params(point, 1), batch)
        else:
            per_example_gradients(tunable, point, batch)
    except Exception as error:
        raise ModelError(
            f"Expected model.name={tunable.backbone.name!r} to compute an example of one word, got "
            f"{type(error).__name__}: {error}"
        ) from error
