"""Find the modules that a model's result depends on: the others' outputs cannot be changed, or change nothing.

Some models read a module's weights and compute with them by themselves (the step sizes of a state-space layer), others
hold modules that they do not use (a pooling layer, keys and values of a layer that shares another one's).
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedllm.models.parts.input_device import input_device

_found: WeakKeyDictionary[nn.Module, frozenset[str] | None] = WeakKeyDictionary()
_TOKENS = 8


def is_used(model: PreTrainedModel, module: str) -> bool:
    """Return False for a module whose output the model's first result does not depend on."""
    used = _used_modules(model)
    return used is None or module in used


def require_used(model: PreTrainedModel, module: str, setting: str) -> None:
    """Refuse a module whose output the model's first result does not depend on.

    Raises:
        ValueError: it is one; the setting is named.
    """
    if not is_used(model, module):
        raise ValueError(
            f"Expected {setting} among the modules whose output {type(model).__name__} uses, got {module!r}: it reads "
            "the module's weights by itself, or does not use it, and an adapter would change nothing"
        )


def _used_modules(model: PreTrainedModel) -> frozenset[str] | None:
    """The names; None where the model makes no pass of a few tokens. Experts that no token reaches are missing."""
    if model not in _found:
        try:
            _found[model] = _record(model)
        except Exception:
            _found[model] = None
    return _found[model]


def _record(model: PreTrainedModel) -> frozenset[str]:
    """Add zeros to the modules' outputs, and see which of them the result has a derivative by."""
    zeros: dict[str, Tensor] = {}

    def add(name: str, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        if name not in zeros:
            zeros[name] = torch.zeros((), dtype=output.dtype, device=output.device).requires_grad_()
        return output + zeros[name]

    handles = [
        module.register_forward_hook(lambda _m, _a, output, name=name: add(name, output))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor)  # quantised ones have no parameter
        and not isinstance(module, nn.Embedding)
    ]
    try:
        ids = torch.zeros(1, _TOKENS, dtype=torch.long, device=input_device(model))
        with torch.enable_grad():
            both = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
            result = model(input_ids=ids, attention_mask=torch.ones_like(ids), **both)[0]
        grads = torch.autograd.grad(result.sum(), list(zeros.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(name for name, grad in zip(zeros, grads, strict=True) if grad is not None)
