"""Check the tensors that a server sends, before spending anything or reading any data.

A server may send any parameters. Parameters that are not finite, or huge, turn a model into something else: states
overflow, and rounding is as large as the clipping norm. So each tensor must have the name, shape and kind of the
one that training starts from, be finite, and have at most ``limit`` times its norm. The check reads no data and so
tells nothing of it. An example's gradient depends on that example alone without it too (:mod:`fedllm.data.shapes`);
the bound keeps the rounding small where kernels depend on a batch's size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedllm.budget.local_policy import LimitRefused

NORM_FLOOR = 1.0
"""Stands for the norm of a tensor that starts smaller than this (a head starts at zero)."""


def check_tensors(
    given: Mapping[str, Tensor], initial: Mapping[str, Tensor], limit: float, what: str
) -> None:
    """Refuse tensors that are not those of the trained model, or beyond the bound on their norm.

    Args:
        given: as they came from the server.
        initial: what training starts from, a function of the settings alone.
        limit: largest L2 norm over that of the initial tensor (at least :data:`NORM_FLOOR`).
        what: "parameters", ...; for the message.

    Raises:
        LimitRefused: names, shapes, kind or norms do not fit, or a value is not finite.
    """
    if sorted(given) != sorted(initial):
        raise LimitRefused(f"Expected {what} named {sorted(initial)}, got {sorted(given)}")
    for name, start in sorted(initial.items()):
        value = given[name]
        if value.shape != start.shape or not value.dtype.is_floating_point:
            raise LimitRefused(
                f"Expected {what} with {name} of shape {tuple(start.shape)} and floating-point numbers, got "
                f"{tuple(value.shape)} and {value.dtype}"
            )
        bound = limit * max(NORM_FLOOR, float(torch.linalg.vector_norm(start.double())))
        norm = float(torch.linalg.vector_norm(value.detach().double()))
        if not norm <= bound:  # NaN and infinite values too
            raise LimitRefused(
                f"Expected {what} with {name} finite and of norm <= {bound:.6g} (client.parameter_norm and the "
                f"silo's limits.parameter_norm times the initial norm), got {norm:.6g}"
            )
