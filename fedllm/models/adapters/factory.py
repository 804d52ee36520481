"""Make the adapter that the settings name, and its initial tensors."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from fedllm.models.adapters.base import Adapter
from fedllm.models.adapters.bitfit import BitfitAdapter
from fedllm.models.adapters.lora import LoraAdapter, LoraForm, initial_factors
from fedllm.models.adapters.plain import HeadAlone, PrefixAdapter
from fedllm.models.adapters.targets import chosen_layers, find_targets
from fedllm.models.adapters.weights import WeightsAdapter
from fedllm.models.backbone import Backbone
from fedllm.models.model_error import ModelError
from fedllm.models.prefix import PREFIX, PrefixSpec, init_from_phrase, init_random
from fedllm.settings.experiment import Settings
from fedllm.settings.sections import PrefixSettings
from privacy.randomness import generator


def make_adapter(settings: Settings, backbone: Backbone) -> Adapter:
    """The adapter of these settings.

    Raises:
        ValueError: layers, targets or a rank that the model does not have, or a prefix that it cannot take; the
            setting is named.
    """
    wanted = settings.adapter
    if wanted.form == "prefix":
        if backbone.no_prefix is not None and settings.prefix.length > 0:
            raise ModelError(
                f"Expected a model that can take prefixes for adapter.form=prefix, got model={backbone.name!r} "
                f"(adapter.form=lora has no such limit): {backbone.no_prefix}"
            )
        layers = chosen_layers(settings.prefix.layers, backbone.n_layers, "prefix.layers")
        if settings.prefix.length == 0 or not layers:
            return HeadAlone()
        spec = PrefixSpec(settings.prefix.length, layers, backbone.kv_heads, backbone.head_dim)
        return PrefixAdapter(backbone.model, spec)
    if wanted.form == "head":
        return HeadAlone()
    if wanted.form == "bitfit":
        return BitfitAdapter.of(backbone.model, wanted.layers)
    if wanted.form == "last-layers" or wanted.form == "full":
        if backbone.kind == "encoder-decoder":
            raise ModelError(
                f"Expected adapter.form=lora (or another of LoRA) or bitfit for the encoder-decoder model={backbone.name!r}, got "
                f"adapter.form={wanted.form}"
            )
        return WeightsAdapter.of(backbone.model, wanted.form, wanted.layers)
    assert wanted.form in get_args(LoraForm)
    targets = find_targets(backbone.model, wanted.targets, wanted.layers)
    return LoraAdapter(backbone.model, tuple(targets), wanted.rank, wanted.alpha, wanted.form)


def initial_tensors(
    adapter: Adapter, prefix: PrefixSettings, seed: int, backbone: Backbone, phrase: str
) -> dict[str, Tensor]:
    """The adapter's tensors before training, float32 on the CPU, a function of settings and model alone.

    Args:
        prefix: how a prefix begins.
        seed: of what is drawn.
        phrase: the task's, where ``prefix`` names none.
    """
    if isinstance(adapter, PrefixAdapter):
        if prefix.init == "phrase":
            named = phrase if prefix.phrase is None else prefix.phrase
            return {PREFIX: init_from_phrase(backbone, adapter.spec, named)}
        rng = generator(seed, "prefix-init")
        return {PREFIX: init_random(adapter.spec, prefix.init_std, rng)}
    if isinstance(adapter, LoraAdapter):
        return initial_factors(adapter, generator(seed, "lora-init"))
    return {name: torch.zeros(shape) for name, shape in adapter.shapes().items()}
