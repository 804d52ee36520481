"""Classify a model configuration by kind of language model, and refuse unusable ones."""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from fedllm.models.model_error import ModelError

Kind = Literal["encoder", "decoder", "encoder-decoder"]
_OTHER_INPUTS = {"vision_config": "images", "audio_config": "sound"}


def kind_of(config: PreTrainedConfig) -> Kind:
    """Return what a configuration describes: a decoder (causal language model), an encoder, or both in one model."""
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    architectures = getattr(config, "architectures", None) or []
    if getattr(config, "is_decoder", False):
        return "decoder"
    masked_too = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if any(a.endswith(("ForCausalLM", "LMHeadModel")) for a in architectures) and not masked_too:
        return "decoder"
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked_too:
        return "decoder"
    return "encoder"


def check_kind(name: str, config: PreTrainedConfig, kind: Kind) -> None:
    """Refuse what is no model of text of this kind.

    Raises:
        ModelError: a model of another kind, or of images or sound too.
    """
    both = getattr(config, "is_encoder_decoder", False)
    if both != (kind == "encoder-decoder"):
        got = f"the encoder-decoder model={name!r}" if both else f"model={name!r}"
        raise ModelError(f"Expected an {kind}, got {got} of type {config.model_type}")
    others = [what for part, what in _OTHER_INPUTS.items() if getattr(config, part, None)]
    if others and kind_of(config) != "decoder":
        raise ModelError(
            f"Expected a model of text alone, got model={name!r} of type {config.model_type}, which reads "
            f"{' and '.join(others)} too; use the text model of its family"
        )
    if kind == "decoder" and kind_of(config) == "encoder":
        raise ModelError(
            f"Expected a causal language model for kind='decoder', got model={name!r} "
            f"of type {config.model_type}, whose attention is not causal"
        )
