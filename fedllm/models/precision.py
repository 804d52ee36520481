"""The precision of matrix products while private examples are computed.

Faster formats for float32 products (TF32, bfloat16) and reductions in 16 bits choose their kernels by shape and
round a thousand times more coarsely: what one example's gradient then is depends on its batch mates. Torch keeps
these switches for the whole process, and libraries turn them on; so they are turned off, and stay off, at each
entry to a model that computes on private examples.
"""

from __future__ import annotations

from typing import Any

import torch

_REDUCED = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)


def require_full_precision() -> None:
    """Turn TF32, bfloat16 for float32 products, and reductions in 16 bits off for this process."""
    backends: Any = torch.backends
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
