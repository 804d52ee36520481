"""The precision of matrix products while private examples are computed.

Faster formats for float32 products (TF32, bfloat16) and reductions in 16 bits choose their kernels by shape and
round a thousand times more coarsely: what one example's gradient then is depends on its batch mates. Torch keeps
these switches for the whole process, and libraries turn them on; so they are turned off, and stay off, at each
entry to a model that computes on private examples.

On a CPU torch passes a product in 16 bits to oneDNN where it has more than 16^3 multiplications, and to a kernel of
its own otherwise. The two round differently: in about one of 100,000 entries by a unit in the last place, and in most
where products underflow. So one example's product and that of several may be computed by different kernels. Where a
model's matrices are so small, all its products are computed without oneDNN; larger ones are always above the limit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedllm.models.footprint.quantise import quantised_sizes

_ONEDNN_ABOVE = 16**3
"""Multiplications of a product in 16 bits above which torch passes it to oneDNN."""
_REDUCED = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)


def allows_onednn(model: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Return True if the kernel of a product cannot depend on the number of examples.

    False for 16 bits on a CPU where a matrix has at most 16^3 entries: one row of it may be below torch's limit for
    oneDNN, and several rows above. Embeddings are looked up, not multiplied.
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    matrices = [
        weight.shape[-2:].numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False)
        if weight.dim() > 1
    ]
    matrices += [rows * columns for rows, columns in quantised_sizes(model)]
    return all(size > _ONEDNN_ABOVE for size in matrices)


def require_full_precision(onednn: bool = True) -> None:
    """Turn TF32, bfloat16 for float32 products, and reductions in 16 bits off for this process.

    Args:
        onednn: whether products are passed to oneDNN, see :func:`allows_onednn`.
    """
    backends: Any = torch.backends
    if backends.mkldnn.enabled != onednn:
        backends.mkldnn.enabled = onednn
    products = (backends.cuda.matmul, backends.mkldnn.matmul)
    if any(part.fp32_precision != "ieee" for part in products):
        torch.set_float32_matmul_precision(
            "highest"
        )  # the older switch first: it changes the newer ones
        for part in products:
            part.fp32_precision = "ieee"
    if backends.cudnn.conv.fp32_precision not in ("ieee", "none"):
        backends.cudnn.allow_tf32 = False  # convolutions and recurrent layers
    for switch in _REDUCED:
        if getattr(backends.cuda.matmul, switch, False):
            setattr(backends.cuda.matmul, switch, False)
