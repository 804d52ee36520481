"""Compute one public example before anything is spent, to find what would strike every example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.models.embedded import ModelError
from fedllm.tasks.base import expand_params
from fedllm.tasks.endpoint_classification import EndpointClassification
from fedllm.training.gradients import per_example_gradients
from fedllm.training.tunable import Tunable

EXAMPLES = 32
"""Number of the server's examples whose losses are looked at before a run."""


def public_feature(tunable: Tunable) -> Feature:
    """Return an example that is a function of task and model alone, such as one word of the first class."""
    (feature,) = tunable.task.features([tunable.task.public_record()])
    return feature


def rehearse(tunable: Tunable, params: Mapping[str, Tensor], *, gradients: bool) -> None:
    """Compute the loss (and where training takes it, the gradient) of a public example.

    Nothing is asked of an endpoint.

    Args:
        gradients: whether training takes gradients of the model.

    Raises:
        ModelError: it raises, or is not finite; the message is a function of public values, the parameters
            among them.
    """
    if isinstance(tunable.task, EndpointClassification):
        return
    device = tunable.backbone.device
    try:
        batch = tunable.task.collate([public_feature(tunable)])
        point = {n: params[n].to(device=device, dtype=torch.float32) for n in sorted(params)}
        with torch.no_grad():  # not inference mode: a model may keep tables that it writes to later
            found = {"loss": tunable.losses(expand_params(point, 1), batch)}
        if gradients:
            found |= per_example_gradients(tunable, point, batch)
    except Exception as error:
        raise ModelError(
            f"Expected model.name={tunable.backbone.name!r} to compute an example of one word, got "
            f"{type(error).__name__}: {error}"
        ) from error
    _require_finite(tunable, found, "an example of one word")


@torch.no_grad()
def require_finite_losses(
    tunable: Tunable, params: Mapping[str, Tensor], features: Sequence[Feature], max_tokens: int
) -> None:
    """Compute the losses of public examples one by one, and nothing of an endpoint.

    Args:
        features: of the server's own; the first :data:`EXAMPLES` are computed.

    Raises:
        ModelError: one is not finite.
    """
    if isinstance(tunable.task, EndpointClassification):
        return
    chosen = list(features[:EXAMPLES])
    point = {name: value.to(tunable.backbone.device) for name, value in params.items()}
    losses = [
        tunable.losses(
            expand_params(point, len(group)), tunable.task.collate([chosen[i] for i in group])
        )
        for group in tunable.task.batches(chosen, max_tokens)
    ]
    if losses:
        found = {"loss": torch.cat(losses)}
        _require_finite(tunable, found, f"{len(chosen)} of the server's evaluation examples")


def _require_finite(tunable: Tunable, found: Mapping[str, Tensor], of: str) -> None:
    for name, value in found.items():
        if not bool(value.isfinite().all()):
            what = "loss" if name == "loss" else f"gradient of {name}"
            raise ModelError(
                f"Expected a finite {what} before training, got {_worst(value)} of {of} with "
                f"model.name={tunable.backbone.name!r} in {str(tunable.backbone.dtype).removeprefix('torch.')}: "
                "float16 overflows in some models (model.dtype=bfloat16 or float32), or its weights are damaged"
            )


def _worst(value: Tensor) -> str:
    return "NaN" if bool(value.isnan().any()) else "infinity"
