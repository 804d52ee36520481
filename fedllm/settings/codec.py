"""Settings of the codec: how updates are encoded in both directions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedllm.settings.section import NonNegativeInt, PositiveFloat, PositiveInt, Section

LEARNED = ("linear", "autoencoder")
"""Codecs that are fitted to a prior."""


class CodecSettings(Section):
    """Encoding of the updates (DR-Encoder, arXiv 2412.17053)."""

    name: Literal["none", "fp16", "int8", "top-k", "random-projection", "linear", "autoencoder"] = (
        Field(
            "none",
            description="`none` sends float32; `fp16` and `int8` every coordinate in fewer bits; `top-k` the "
            "largest coordinates; `random-projection` needs no prior; `linear` and `autoencoder` are "
            "fitted to a prior.",
        )
    )
    ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        32.0,
        description="How many times shorter the code is than the update (`top-k`: in bytes, its "
        "indices included). Not for `none`, `fp16`, `int8`.",
    )
    prior: Literal["layerwise", "factored", "coordinate", "low-rank"] = Field(
        "factored",
        description="What the clients' statistics tell: mean and variance of each layer (the paper); "
        "second moments by head and position and by head and dimension; of each coordinate; "
        "coordinates and leading directions.",
    )
    prior_source: Literal["private", "public"] = Field(
        "private",
        description="`private`: statistics that the clients release under differential privacy, as "
        "events in the ledger. `public`: the server's own gradients on the text of [public] (where that "
        "is none: on its evaluation examples) with labels drawn at random, free.",
    )
    rank: NonNegativeInt = Field(8, description="`low-rank`: directions at most.")
    statistics_noise: PositiveFloat = Field(
        4.0,
        description="Noise multiplier of each client's release of statistics (over its sensitivity "
        "to one record or none in its place).",
    )
    noise: Literal["before-encoding", "in-code"] = Field(
        "before-encoding",
        description="Where the privacy noise is added: to all coordinates of the update (the paper), or to "
        "the code, which has fewer. `in-code` needs a codec with a known Lipschitz constant. With "
        "privacy.noise_by=server the server adds it: to the sum of the decoded updates, or of the codes.",
    )
    bits: Literal[32, 16, 8, 4] = Field(
        32, description="Bits of a number of the code; 8 and 4 by unbiased stochastic rounding."
    )
    downlink: Literal["none", "fp16", "int8"] = Field(
        "none", description="How the server's parameters travel to the clients."
    )
    steps: PositiveInt = Field(400, description="`autoencoder`: training steps at most.")
    width: PositiveInt = Field(64, description="`autoencoder`: channels of the residual blocks.")

    @model_validator(mode="after")
    def _check(self) -> CodecSettings:
        if self.noise == "in-code" and self.name in ("autoencoder", "top-k"):
            raise ValueError(
                "Expected codec.noise=before-encoding for a codec without a known Lipschitz constant "
                "(the noise that a code needs is then unknown), got codec.noise=in-code with "
                f"codec.name={self.name}"
            )
        if self.bits != 32 and self.name in ("fp16", "int8", "top-k"):
            raise ValueError(
                f"Expected codec.bits=32 for codec.name={self.name} (it has its own number format), "
                f"got codec.bits={self.bits}"
            )
        return self

    @property
    def active(self) -> bool:
        """Whether updates travel as codes at all."""
        return self.name != "none" or self.bits != 32

    @property
    def keeps_all(self) -> bool:
        """Whether every coordinate is sent, and only its number format is shorter."""
        return self.name in ("none", "fp16", "int8")

    @property
    def asks_silos(self) -> bool:
        """Whether the silos release statistics before training."""
        return self.needs_prior and self.prior_source == "private"

    @property
    def needs_prior(self) -> bool:
        """Whether the codec is fitted to a prior."""
        return self.name in LEARNED
