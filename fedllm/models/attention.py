"""Prefix attention: per-example keys and values in front of every layer's own, for any architecture.

transformers lets an attention function be registered by name and chosen per model. The function
here puts the layer's prefix keys and values in front of the computed ones, widens the mask by P
columns that every query may see, and calls the library's own SDPA attention. Model code is not
touched, and no cache object is used: in generation the prefix is prepended at every step and never
enters the KV cache.

The active prefix lives in a slot that hangs on the model (not in a global), and inside the slot
on a per-thread stack: models do not mix, threads do not mix, scopes nest.

Method: Li and Liang, "Prefix-Tuning" (2021); with keys and values in every layer, "P-Tuning v2"
(Liu et al., 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fedllm.models.parts.attention_layers import (
    COUNTED,
    LAYER,
    AttentionCall,
    AttentionGeometry,
    common_geometry,
    number_layers,
)
from fedllm.models.parts.input_device import input_device
from fedllm.models.parts.prefix_slot import ActivePrefix, PrefixSlot
from fedllm.models.parts.selection import Padding

ATTENTION_NAME = "fedllm_prefix"


class NotPlainAttention(ValueError):
    """Attention of a form that a prefix has no meaning in, and that torch's own attention leaves out."""


_SLOT = "_fedllm_prefix_slot"


def _prefix_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute SDPA over the prefix and the tokens, in transformers' attention interface.

    query (B, heads, T, d); key and value (B, kv_heads, S, d); attention_mask None or
    (B or 1, 1 or heads, T, S), boolean (True: visible) or additive.

    Within :func:`padding_scope`, queries, keys, values and results there are zeros, selected and not
    multiplied: whatever stands at padding, NaN included, reaches no token and no prefix, forward or backward.
    """
    slot: PrefixSlot | None = getattr(module, _SLOT, None)
    padding: Padding | None = None
    default = getattr(module, "is_causal", True if slot is None else slot.causal)
    causal = bool(default if is_causal is None else is_causal)
    is_causal = causal
    if slot is not None:
        here, layer = slot.here, getattr(module, LAYER, None)  # None before there are numbers
        if layer == COUNTED:
            layer = here.calls
            here.calls += 1
        if here.recorder is not None:
            _check_options(module, len(here.recorder), kwargs)
            here.recorder.append(AttentionCall(module, key, value, causal))
        active = here.stack[-1] if here.stack else None
        padding = here.padding
        if padding is not None and padding.shape[1] == query.shape[2] == key.shape[2]:
            query, key, value = padding.cleared((query, key, value), 2)
        else:
            padding = None
        if active is not None and layer is not None and layer in active.layers:
            key, value, attention_mask = _prepend(
                active, layer, query, key, value, attention_mask, causal, kwargs
            )
            is_causal = False  # the mask is explicit now, where one is needed
    output: Tensor = sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        **kwargs,
    )[0]
    if padding is not None:
        (output,) = padding.cleared((output,), 1)
    return output, None


def _prepend(
    active: ActivePrefix,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return keys, values and mask with the prefix in front."""
    batch, queries, keys = key.shape[0], query.shape[2], key.shape[2]
    if active.batch not in (1, batch):
        raise ValueError(
            f"Expected a prefix for {batch} examples (the batch) or for 1 (shared), "
            f"got prefix batch={active.batch}"
        )
    if mask is not None and not isinstance(mask, Tensor):
        raise ValueError(f"Expected a tensor as attention mask, got {type(mask).__name__}")
    if mask is None and causal and queries > 1:
        # The library relies on SDPA's is_causal here. With P more keys than queries, SDPA would
        # align the triangle at the top left: wrong, and silent. So the mask is made explicit.
        # More keys than queries without a mask is the empty static cache, whose tail is unused.
        if keys > queries:
            key, value = key[:, :, :queries], value[:, :, :queries]
        mask = active.causal_mask(queries, query.device)
    elif mask is not None:
        mask = active.mask if active.mask_source is mask else active.widen(mask)
    window = options.get("sliding_window")
    if causal and window is not None and keys + active.length > window:
        raise ValueError(
            f"Expected prefix and tokens to fit the model's sliding window of {window}, got "
            f"{active.length} + {keys}: beyond it, whether the prefix stays visible is not defined"
        )
    prefix_key, prefix_value = active.layers[layer]
    shape = (batch, -1, -1, -1)
    key = torch.cat([prefix_key.to(key).expand(shape), key], dim=2)
    value = torch.cat([prefix_value.to(value).expand(shape), value], dim=2)
    return key, value, mask


AttentionInterface.register(ATTENTION_NAME, _prefix_attention_forward)


def _explicit_mask(*args: Any, **options: Any) -> Tensor | None:
    """Return the library's mask, made wherever the caller says what is padding.

    The library leaves the mask out for a batch without padding, and attention then runs in another kernel:
    an example's bits would depend on whether its batch mates have padding.
    """
    if options.get("attention_mask") is not None:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*args, **options)


AttentionMaskInterface.register(ATTENTION_NAME, _explicit_mask)


def install(model: PreTrainedModel, *, causal: bool = True) -> None:
    """Make ``model`` able to take prefixes; without an open scope its results do not change.

    A forward pass of two tokens finds the attention layers that come through here; they are numbered in its
    order. Calling it again does nothing.

    Args:
        causal: what a module is that does not say whether its attention is causal (some encoders').

    Raises:
        ValueError: the model's attention does not go through transformers' attention interface, or has a form
            whose meaning with a prefix is not defined here (soft capping, attention sinks, encoder-decoder,
            layers that differ in shape); or the forward pass raises.
    """
    if getattr(model, _SLOT, None) is not None and geometry_or_none(model) is not None:
        return
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"Expected an encoder or a decoder, got the encoder-decoder {name}")
    slot = PrefixSlot()
    slot.causal = causal
    for module in model.modules():
        setattr(module, _SLOT, slot)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(ATTENTION_NAME)
        ids = torch.zeros(1, 2, dtype=torch.long, device=input_device(model))
        calls = _probed(name, model, ids)
        shared = number_layers(name, calls)
        slot.geometry = common_geometry(name, calls)
    except Exception:
        _forget(model, all_modules=True)
        model.set_attn_implementation(before)
        raise
    _forget(model, all_modules=False)
    if shared:
        model.register_forward_pre_hook(_restart)


def _probed(name: str, model: PreTrainedModel, ids: Tensor) -> list[AttentionCall]:
    try:
        return record_attention(model, input_ids=ids)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"Expected {name} to compute a text of two tokens, got {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def _forget(model: PreTrainedModel, *, all_modules: bool) -> None:
    """Take the slot from the modules that make no attention call, or from all."""
    for module in model.modules():
        if all_modules:
            module.__dict__.pop(LAYER, None)
        if all_modules or (module is not model and not hasattr(module, LAYER)):
            module.__dict__.pop(_SLOT, None)


def _restart(module: nn.Module, args: Any) -> None:
    getattr(module, _SLOT).here.calls = 0


def _check_options(module: nn.Module, layer: int | None, options: dict[str, Any]) -> None:
    """Refuse forms of attention whose meaning with a prefix is not defined here."""
    for refused in ("softcap", "s_aux", "position_bias"):
        if options.get(refused) is not None:
            raise NotPlainAttention(
                f"Expected plain attention, got {refused} in layer {layer} "
                f"({type(module).__name__}), which prefixes do not support"
            )


def geometry_or_none(model: PreTrainedModel) -> AttentionGeometry | None:
    """Return the geometry found by :func:`install`, or None where the model has not had it."""
    slot: PrefixSlot | None = getattr(model, _SLOT, None)
    return None if slot is None else slot.geometry


def geometry(model: PreTrainedModel) -> AttentionGeometry:
    """Return the geometry found by :func:`install`. Raises ValueError without it."""
    return _slot(model).geometry  # type: ignore[return-value]


def _slot(model: PreTrainedModel) -> PrefixSlot:
    slot: PrefixSlot | None = getattr(model, _SLOT, None)
    if slot is None or slot.geometry is None:
        raise ValueError(
            f"Expected a model prepared by fedllm.models.attention.install, got {type(model).__name__}"
        )
    return slot


def record_attention(model: PreTrainedModel, **inputs: Any) -> list[AttentionCall]:
    """Return runs ``model(**inputs)`` without gradients and returns every attention call, in order."""
    slot: PrefixSlot = getattr(model, _SLOT)
    calls: list[AttentionCall] = []
    slot.here.stack.append(None)  # record the model as it is, whatever scope is open
    slot.here.recorder = calls
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        slot.here.recorder = None
        slot.here.stack.pop()
    return calls


def capture_keys_values(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Return keys and values of every layer for one example: (n_layers, 2, kv_heads, T, head_dim), fp32.

    Keys are as they would sit in a KV cache (after the rotation by position, if there is one).
    """
    _slot(model)
    calls = record_attention(model, **inputs)
    return torch.stack([torch.stack([call.key[0], call.value[0]]) for call in calls]).float()


@contextmanager
def prefix_scope(
    model: PreTrainedModel, prefix_per_example: Tensor, layers: Sequence[int]
) -> Iterator[None]:
    """Make ``model`` attend to the given prefixes within the scope, in this thread.

    Args:
        model: a model prepared by :func:`install`.
        prefix_per_example: (B, L', 2, kv_heads, P, head_dim), keys at index 0 and values at 1 of
            the third dimension. B is the batch size, or 1 for a prefix shared by all. Differentiate
            with respect to this tensor to obtain one gradient per example. It is cast to the
            model's dtype where it is used.
        layers: the L' distinct layers that carry a prefix, in the tensor's order. May be empty.

    Scopes nest: the inner one replaces the outer one until it closes. Decoders also need position
    ids that count from P (see ``fedllm.data.batches.position_ids``).

    Raises:
        ValueError: wrong shape, unknown or repeated layer, model not prepared, or gradient
            checkpointing in force (its recomputation could run after the scope).
    """
    slot = _slot(model)
    shape: AttentionGeometry = slot.geometry  # type: ignore[assignment]
    layers = list(layers)
    expected = f"(B, {len(layers)}, 2, {shape.kv_heads}, P, {shape.head_dim})"
    size = tuple(prefix_per_example.shape)
    if len(size) != 6 or (size[1], size[2], size[3], size[5]) != (
        len(layers),
        2,
        shape.kv_heads,
        shape.head_dim,
    ):
        raise ValueError(f"Expected prefix_per_example of shape {expected}, got {size}")
    if len(set(layers)) != len(layers) or not all(0 <= i < shape.n_layers for i in layers):
        raise ValueError(
            f"Expected distinct layers between 0 and {shape.n_layers - 1}, got layers={layers}"
        )
    if model.training and getattr(model, "is_gradient_checkpointing", False):
        raise ValueError("Expected no gradient checkpointing under a prefix, got it enabled")
    # unbind, not indexing: its backward is one stack instead of a full-size zero tensor per slice
    pairs = {
        index: tuple(pair.unbind(1))
        for index, pair in zip(layers, prefix_per_example.unbind(1), strict=True)
    }
    active = ActivePrefix(pairs if size[4] > 0 else {}, size[0], size[4])  # type: ignore[arg-type]
    slot.here.stack.append(active)
    try:
        yield
    finally:
        slot.here.stack.pop()


@contextmanager
def padding_scope(model: PreTrainedModel, attention_mask: Tensor) -> Iterator[None]:
    """Mask states at padding, whatever their values, within the scope, in this thread.

    Does nothing for a model without prefix attention, whose batches have no padding (:mod:`fedllm.models.grouping`).

    Args:
        model: to be run on one batch.
        attention_mask: (B, T), 0 at padding.
    """
    slot: PrefixSlot | None = getattr(model, _SLOT, None)
    if slot is None:
        yield
        return
    here = slot.here
    before, here.padding = here.padding, Padding(attention_mask)
    try:
        yield
    finally:
        here.padding = before


def captured_attention(model: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Return a function that opens a scope with the prefix, the padding and the count of calls of now, in whatever
    thread and scope it is called."""
    slot: PrefixSlot | None = getattr(model, _SLOT, None)
    if slot is None:
        return nullcontext
    here = slot.here  # of this thread; in another one the same slot has another state
    active = here.stack[-1] if here.stack else None
    padding, calls = here.padding, here.calls

    @contextmanager
    def scope() -> Iterator[None]:
        before = here.padding, here.calls
        here.stack.append(active)
        here.padding, here.calls = padding, calls
        try:
            yield
        finally:
            here.stack.pop()
            here.padding, here.calls = before

    return scope
