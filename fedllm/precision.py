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
    cuda: Any = torch.backends.cuda.matmul
    for part in _float32_products():
        if part.fp32_precision != "ieee":
            part.fp32_precision = "ieee"
    for switch in _REDUCED:
        if getattr(cuda, switch, False):
            setattr(cuda, switch, False)


def float32_precisions() -> list[str]:
    """The formats that torch uses for float32 products, one for each library and kind of operation."""
    return [str(part.fp32_precision) for part in _float32_products()]


def _float32_products() -> list[Any]:
    """Torch's switches for float32 products, one for each library and kind of operation."""
    backends: Any = torch.backends
    libraries = (backends.cuda, backends.cudnn, backends.mkldnn)
    kinds = ("matmul", "conv", "rnn")
    parts = [getattr(library, kind, None) for library in libraries for kind in kinds]
    return [part for part in parts if hasattr(part, "fp32_precision")]
