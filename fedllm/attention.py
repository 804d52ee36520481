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

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fedllm.selection import Padding

ATTENTION_NAME = "fedllm_prefix"
_SLOT = "_fedllm_prefix_slot"


@dataclass(frozen=True)
class AttentionGeometry:
    """Shape of a model's attention, as observed in a forward pass.

    ``kv_heads`` counts key/value heads (smaller than the query heads in grouped-query attention);
    ``head_dim`` is the size of one head.
    """

    n_layers: int
    kv_heads: int
    head_dim: int
    causal: bool


@dataclass
class _Call:
    """One attention call, seen by a recorder."""

    layer: int | None
    key: Tensor
    value: Tensor
    causal: bool


@dataclass
class _ActivePrefix:
    """Prefix keys and values by layer, each (B, kv_heads, P, head_dim), and the last mask made."""

    layers: dict[int, tuple[Tensor, Tensor]]
    batch: int
    length: int
    mask_source: Tensor | None = None
    mask: Tensor | None = None
    causal_masks: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    def widen(self, mask: Tensor) -> Tensor:
        """``mask`` (B or 1, 1 or heads, T, S) with P visible columns in front (made once a pass)."""
        if self.mask_source is not mask or self.mask is None:
            visible = True if mask.dtype == torch.bool else 0.0
            self.mask = functional.pad(mask, (self.length, 0), value=visible)
            self.mask_source = mask
        return self.mask

    def causal_mask(self, n: int, device: torch.device) -> Tensor:
        """(1, 1, n, P + n): query t sees the whole prefix and the tokens 0..t."""
        made = self.causal_masks.get((n, device))
        if made is None:
            made = torch.ones(n, self.length + n, dtype=torch.bool, device=device)
            made = made.tril(diagonal=self.length)[None, None]
            self.causal_masks[(n, device)] = made
        return made


class _PrefixSlot:
    """What one model carries: a stack of active prefixes, the padding and a recorder for each thread."""

    def __init__(self) -> None:
        self._local = threading.local()
        self.geometry: AttentionGeometry | None = None

    @property
    def stack(self) -> list[_ActivePrefix | None]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[_ActivePrefix | None] = self._local.stack
        return stack

    @property
    def recorder(self) -> list[_Call] | None:
        return getattr(self._local, "recorder", None)

    @recorder.setter
    def recorder(self, calls: list[_Call] | None) -> None:
        self._local.recorder = calls

    @property
    def padding(self) -> Padding | None:
        return getattr(self._local, "padding", None)

    @padding.setter
    def padding(self, padding: Padding | None) -> None:
        self._local.padding = padding

    def _copy(self) -> _PrefixSlot:
        """A copied or pickled model gets an empty slot of its own."""
        new = _PrefixSlot()
        new.geometry = self.geometry
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> _PrefixSlot:
        return self._copy()

    def __getstate__(self) -> dict[str, Any]:
        return {"geometry": self.geometry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._local = threading.local()
        self.geometry = state["geometry"]


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
    """Attention function for transformers' interface: SDPA over the prefix and the tokens.

    query (B, heads, T, d); key and value (B, kv_heads, S, d); attention_mask None or
    (B or 1, 1 or heads, T, S), boolean (True: visible) or additive.

    Within :func:`padding_scope`, queries, keys, values and results there are zeros, selected and not
    multiplied: whatever stands at padding, NaN included, reaches no token and no prefix, forward or backward.
    """
    slot: _PrefixSlot | None = getattr(module, _SLOT, None)
    padding: Padding | None = None
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if slot is not None:
        layer = getattr(module, "layer_idx", None)
        if slot.recorder is not None:
            _check_options(module, layer, kwargs)
            slot.recorder.append(_Call(layer, key, value, causal))
        active = slot.stack[-1] if slot.stack else None
        padding = slot.padding
        if padding is not None and padding.shape[1] == query.shape[2] == key.shape[2]:
            query, key, value = (padding.cleared(x, 2) for x in (query, key, value))
        else:
            padding = None
        if active is not None and layer in active.layers:
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
        output = padding.cleared(output, 1)
    return output, None


def _prepend(
    active: _ActivePrefix,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and mask with the prefix in front."""
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
        mask = active.widen(mask)
    window = options.get("sliding_window")
    if causal and window is not None and keys + active.length > window:
        raise ValueError(
            f"Expected prefix and tokens to fit the model's sliding window of {window}, got "
            f"{active.length} + {keys}: beyond it, whether the prefix stays visible is not defined"
        )
    prefix_key, prefix_value = active.layers[layer]
    shape = (batch, -1, -1, -1)
    key = torch.cat([prefix_key.to(key.dtype).expand(shape), key], dim=2)
    value = torch.cat([prefix_value.to(value.dtype).expand(shape), value], dim=2)
    return key, value, mask


AttentionInterface.register(ATTENTION_NAME, _prefix_attention_forward)


def _explicit_mask(*args: Any, **options: Any) -> Tensor | None:
    """The library's mask, made wherever the caller says what is padding.

    The library leaves the mask out for a batch without padding, and attention then runs in another kernel:
    an example's bits would depend on whether its batch mates have padding.
    """
    if options.get("attention_mask") is not None:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*args, **options)


AttentionMaskInterface.register(ATTENTION_NAME, _explicit_mask)


def install(model: PreTrainedModel) -> None:
    """Makes ``model`` able to take prefixes; without an open scope its results do not change.

    A forward pass of two tokens then proves that every layer's attention comes through here.
    Calling it again does nothing.

    Raises:
        ValueError: the model's attention does not go through transformers' attention interface in
            every layer, or has a form whose meaning with a prefix is not defined here (soft
            capping, attention sinks, encoder-decoder, layers that differ in shape).
    """
    if getattr(model, _SLOT, None) is not None and geometry_or_none(model) is not None:
        return
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"Expected an encoder or a decoder, got the encoder-decoder {name}")
    slot = _PrefixSlot()
    for module in model.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            setattr(module, _SLOT, slot)
    setattr(model, _SLOT, slot)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(ATTENTION_NAME)
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        slot.geometry = _geometry(name, record_attention(model, input_ids=ids))
    except Exception:
        for module in model.modules():
            if hasattr(module, _SLOT):
                delattr(module, _SLOT)
        model.set_attn_implementation(before)
        raise


def _check_options(module: nn.Module, layer: int | None, options: dict[str, Any]) -> None:
    """Refuses forms of attention whose meaning with a prefix is not defined here."""
    for refused in ("softcap", "s_aux", "position_bias"):
        if options.get(refused) is not None:
            raise ValueError(
                f"Expected plain attention, got {refused} in layer {layer} "
                f"({type(module).__name__}), which prefixes do not support"
            )


def _geometry(name: str, calls: list[_Call]) -> AttentionGeometry:
    """The common shape of all layers, or a ValueError that says what does not fit."""
    found = [call.layer for call in calls]
    if not found or found != list(range(len(found))):
        raise ValueError(
            f"Expected a model whose layers each call transformers' attention interface once, in "
            f"order; {name} did so for layers {found}"
        )
    shapes = {
        (call.key.shape[1], call.key.shape[3], call.value.shape[3], call.causal) for call in calls
    }
    kv_heads, key_dim, value_dim, causal = next(iter(shapes))
    if len(shapes) > 1 or key_dim != value_dim:
        raise ValueError(
            "Expected the same key/value heads and head size in every layer and for keys and "
            f"values, got (heads, key size, value size, causal) = {sorted(shapes)} in {name}"
        )
    return AttentionGeometry(len(calls), kv_heads, key_dim, causal)


def geometry_or_none(model: PreTrainedModel) -> AttentionGeometry | None:
    """The geometry found by :func:`install`, or None where the model has not had it."""
    slot: _PrefixSlot | None = getattr(model, _SLOT, None)
    return None if slot is None else slot.geometry


def geometry(model: PreTrainedModel) -> AttentionGeometry:
    """The geometry found by :func:`install`. Raises ValueError without it."""
    return _slot(model).geometry  # type: ignore[return-value]


def _slot(model: PreTrainedModel) -> _PrefixSlot:
    slot: _PrefixSlot | None = getattr(model, _SLOT, None)
    if slot is None or slot.geometry is None:
        raise ValueError(
            f"Expected a model prepared by fedllm.attention.install, got {type(model).__name__}"
        )
    return slot


def record_attention(model: PreTrainedModel, **inputs: Any) -> list[_Call]:
    """Runs ``model(**inputs)`` without gradients and returns every attention call, in order."""
    slot: _PrefixSlot = getattr(model, _SLOT)
    calls: list[_Call] = []
    slot.stack.append(None)  # record the model as it is, whatever scope is open
    slot.recorder = calls
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        slot.recorder = None
        slot.stack.pop()
    return calls


def capture_keys_values(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Keys and values of every layer for one example: (n_layers, 2, kv_heads, T, head_dim), fp32.

    Keys are as they would sit in a KV cache (after the rotation by position, where there is one).
    """
    _slot(model)
    calls = record_attention(model, **inputs)
    return torch.stack([torch.stack([call.key[0], call.value[0]]) for call in calls]).float()


@contextmanager
def prefix_scope(
    model: PreTrainedModel, prefix_per_example: Tensor, layers: Sequence[int]
) -> Iterator[None]:
    """Within the scope, and in this thread, ``model`` attends to the given prefixes.

    Args:
        model: a model prepared by :func:`install`.
        prefix_per_example: (B, L', 2, kv_heads, P, head_dim), keys at index 0 and values at 1 of
            the third dimension. B is the batch size, or 1 for a prefix shared by all. Differentiate
            with respect to this tensor to obtain one gradient per example. It is cast to the
            model's dtype where it is used.
        layers: the L' distinct layers that carry a prefix, in the tensor's order. May be empty.

    Scopes nest: the inner one replaces the outer one until it closes. Decoders also need position
    ids that count from P (see ``fedllm.inputs.position_ids``).

    Raises:
        ValueError: wrong shape, unknown or repeated layer, model not prepared, or gradient
            checkpointing in force (its recomputation could run after the scope).
    """
    slot, shape = _slot(model), geometry(model)
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
    active = _ActivePrefix(pairs if size[4] > 0 else {}, size[0], size[4])  # type: ignore[arg-type]
    stack = slot.stack
    stack.append(active)
    try:
        yield
    finally:
        stack.pop()


@contextmanager
def padding_scope(model: PreTrainedModel, attention_mask: Tensor) -> Iterator[None]:
    """Within the scope, and in this thread, states at padding enter nothing, whatever they are.

    Args:
        model: a model prepared by :func:`install`, to be run on one batch.
        attention_mask: (B, T), 0 at padding.
    """
    slot = _slot(model)
    before, slot.padding = slot.padding, Padding(attention_mask)
    try:
        yield
    finally:
        slot.padding = before
