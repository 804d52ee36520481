"""Device of a model's inputs, where its weights may lie on several."""

from __future__ import annotations

import torch
from torch import nn

_DEVICE = "_fedllm_input_device"


def set_input_device(model: nn.Module, device: torch.device) -> None:
    """Note where the inputs of a model go whose first weights may be elsewhere."""
    setattr(model, _DEVICE, device)


def input_device(model: nn.Module) -> torch.device:
    """Return the device of the model's inputs: the one noted, else that of its first weights."""
    noted: torch.device | None = getattr(model, _DEVICE, None)
    return noted or next(model.parameters()).device
