"""Codecs of updates: made from settings, or from the state that the server sent."""

from __future__ import annotations

from fedllm.codec.autoencoder import Autoencoder, train_autoencoder
from fedllm.codec.base import Code, Codec, compressed_dimension
from fedllm.codec.identity import Half, Identity
from fedllm.codec.layout import Layout
from fedllm.codec.linear import Linear
from fedllm.codec.prior import Prior
from fedllm.codec.quantise import Int8, Quantised
from fedllm.codec.random_projection import RandomProjection
from fedllm.codec.registry import (
    CodecKind,
    add_class,
    codec_from_state,
    codec_names,
    register_codec,
    registered_kind,
)
from fedllm.codec.top_k import TopK
from fedllm.settings.codec import CodecSettings
from fedllm.settings.kinds import CODECS, CodecFacts

for _class in (
    Identity,
    Half,
    Int8,
    TopK,
    RandomProjection,
    Linear,
    Autoencoder,
    Quantised,
):
    add_class(_class)


def make_codec(settings: CodecSettings, layout: Layout, prior: Prior | None, seed: int) -> Codec:
    """Return the codec that the settings name, for vectors of this layout.

    Args:
        prior: for the kinds that are fitted to one; unused by the others.
        seed: of random rows, ties, initial weights and synthetic gradients; public.

    Raises:
        ValueError: no prior, or one of another dimension, where one is needed; a ratio that leaves
            no dimension.
    """
    d = layout.dimension
    if settings.needs_prior and (prior is None or prior.dimension != d):
        raise ValueError(
            f"Expected a prior of dimension {d} for codec.name={settings.name}, "
            f"got {prior.dimension if prior else 'none'}"
        )
    made = _make(settings, d, prior, seed)
    return made if settings.bits == 32 else Quantised(made, settings.bits)


def _make(settings: CodecSettings, d: int, prior: Prior | None, seed: int) -> Codec:
    kind = registered_kind(CODECS.check(settings.name))
    if kind is not None:
        return kind.make(settings, d, prior if settings.needs_prior else None, seed)
    if settings.name == "none":
        return Identity(d)
    if settings.name == "fp16":
        return Half(d)
    if settings.name == "int8":
        return Int8(d)
    k = compressed_dimension(d, settings.ratio)
    if settings.name == "top-k":
        return TopK.of_ratio(d, settings.ratio)
    if prior is None or settings.name == "random-projection":
        return RandomProjection(d, k, seed)
    if settings.name == "linear":
        return Linear.from_prior(prior, k, seed)
    return train_autoencoder(prior, k, seed, steps=settings.steps, width=settings.width)


__all__ = [
    "Code",
    "Codec",
    "CodecFacts",
    "CodecKind",
    "CodecSettings",
    "Layout",
    "Prior",
    "codec_from_state",
    "codec_names",
    "make_codec",
    "register_codec",
]
