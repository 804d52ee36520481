"""The parameters on their way down: as they are, in 16 bits, or in 8 (``codec.downlink``).

Parameters are made of released values: rounding them is post-processing. The silos compute with what
they receive, and name their releases by it; the server continues with its own float32 values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fedllm.codec.quantise import dequantise, quantise
from privacy.randomness import RandomSource

Downlink = Literal["none", "fp16", "int8"]
_LARGEST_HALF = 65504.0
VALUES, SCALES = "values.", "scales."
"""Before the names of the tensors that 8 bits take instead of one."""


def encode_params(
    params: Mapping[str, Tensor], how: Downlink, rng: RandomSource
) -> dict[str, Tensor]:
    """Return the tensors that travel.

    Args:
        rng: for the stochastic rounding of ``int8``; need not be secret.
    """
    if how == "none":
        return dict(params)
    if how == "fp16":
        return {
            name: value.clamp(-_LARGEST_HALF, _LARGEST_HALF).to(torch.float16)
            for name, value in params.items()
        }
    found = {}
    for name, value in params.items():
        parts = quantise(value.detach().float().cpu().reshape(-1), 8, rng)
        found[VALUES + name] = parts["values"].reshape(value.shape)
        found[SCALES + name] = parts["scales"]
    return found


def decode_params(tensors: Mapping[str, Tensor], how: Downlink) -> dict[str, Tensor]:
    """Return the parameters, float32, from what :func:`encode_params` gave.

    Raises:
        ValueError: a tensor is missing, or holds no floating-point numbers where it should.
    """
    whole = [name for name, value in tensors.items() if not value.dtype.is_floating_point]
    if how != "int8" and whole:
        raise ValueError(f"Expected floating-point parameters, got others in {sorted(whole)}")
    if how != "int8":
        return {name: value.float() for name, value in tensors.items()}
    names = [name.removeprefix(VALUES) for name in tensors if name.startswith(VALUES)]
    if sorted(tensors) != sorted([p + name for name in names for p in (VALUES, SCALES)]):
        raise ValueError(f"Expected parameters in 8 bits, got the tensors {sorted(tensors)}")
    found = {}
    for name in names:
        values, scales = tensors[VALUES + name], tensors[SCALES + name]
        flat = dequantise(values.reshape(-1), scales, values.numel(), 8)
        found[name] = flat.reshape(values.shape)
    return found
