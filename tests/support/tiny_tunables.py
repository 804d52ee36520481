"""The tiny models as what is trained, and the gradient of one example by ordinary autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.tasks.base import expand_params
from fedllm.training.tunable import Tunable, make_tunable

KINDS = ("encoder", "label-words", "generation")


def make(kind: str, tiny_settings: Callable[..., Any], decoder_folder: Any) -> Tunable:
    """The tiny encoder with a head, or the tiny decoder as classifier or as writer."""
    changes: dict[str, Any] = {}
    if kind == "label-words":
        changes["model.name"] = str(decoder_folder)
        changes["task.label_words"] = ["w5", "w6"]
        changes["task.prompt"] = "w7 {text} w8"
    if kind == "generation":
        changes["model.name"] = str(decoder_folder)
        changes |= {"task.kind": "generation", "task.target": "answer"}
    return make_tunable(tiny_settings(**changes))


def random_params(tunable: Tunable, seed: int = 1) -> dict[str, Tensor]:
    """Normal values with standard deviation 0.3: no tensor is zero."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {name: value.shape for name, value in tunable.task.initial_params().items()}
    assert tunable.spec is not None
    shapes["prefix"] = torch.Size(tunable.spec.shape)
    return {name: torch.randn(shapes[name], generator=rng) * 0.3 for name in sorted(shapes)}


def shaken(tensors: Mapping[str, Tensor], seed: int = 2, size: float = 0.3) -> dict[str, Tensor]:
    """The tensors plus normal noise: no initial zeros, under which a prefix has no gradient."""
    rng = torch.Generator().manual_seed(seed)
    return {n: v + size * torch.randn(v.shape, generator=rng) for n, v in tensors.items()}


def alone(tunable: Tunable, params: Mapping[str, Tensor], feature: Feature) -> dict[str, Tensor]:
    """Ordinary autograd of one example, without any expansion to a batch of several."""
    leaves = {name: value.clone().requires_grad_(True) for name, value in params.items()}
    batch = tunable.task.collate([feature])
    loss = tunable.losses(expand_params(leaves, 1), batch).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(leaves, grads, strict=True))
