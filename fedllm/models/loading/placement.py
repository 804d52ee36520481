"""Device and number format of a model, by the words of the settings."""

from __future__ import annotations

import torch

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
}


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device meant by ``device`` ("auto": cuda, else mps, else cpu)."""
    if device != "auto":
        try:
            found = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"Expected 'auto' or a torch device, got device={device!r}") from error
        if found.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"Expected an available device, got device={device!r} without CUDA")
        if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"Expected an available device, got device={device!r} with {torch.cuda.device_count()} GPUs"
            )
        return found
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the torch dtype meant by ``dtype`` on ``device``."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    if dtype not in _DTYPES:
        raise ValueError(
            f"Expected dtype to be one of auto, {', '.join(_DTYPES)}, got dtype={dtype!r}"
        )
    return _DTYPES[dtype]
