"""Find which inputs a model's forward pass takes."""

from __future__ import annotations

import inspect

from torch import nn


def takes_positions(model: nn.Module) -> bool:
    """Return True if a model takes ``position_ids``; others count positions themselves, or have none."""
    return "position_ids" in inspect.signature(model.forward).parameters
