"""Settings of section ``[codec]``: encoding of updates and of the server's parameters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fedllm.settings.kinds import CODECS
from fedllm.settings.section import NonNegativeInt, PositiveFloat, PositiveInt, Section


class CodecSettings(Section):
    """Encoding of the updates (DR-Encoder, arXiv 2412.17053)."""

    name: Annotated[str, AfterValidator(CODECS.check)] = Field(
        "none",
        description="Codec. `none` sends float32; `fp16` and `int8` send every coordinate in fewer bits; `top-k` sends the "
        "largest coordinates; `random-projection` needs no prior; `linear` and `autoencoder` are fitted to a "
        "prior. Another package may register more.",
    )
    ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        32.0,
        description="Compression ratio: size of the update divided by the size of the code (for `top-k` in bytes, "
        "including its indices). Not used by `none`, `fp16` and `int8`.",
    )
    prior: Literal["layerwise", "factored", "coordinate", "low-rank"] = Field(
        "factored",
        description="Statistics that form the prior. `layerwise`: mean and variance of each layer (the paper). `factored`: "
        "second moments by head and position, and by head and dimension. `coordinate`: second moments of each "
        "coordinate. `low-rank`: those of each coordinate and the leading directions.",
    )
    prior_source: Literal["private", "public"] = Field(
        "private",
        description="Source of the statistics. `private`: released by the clients under differential privacy, as events in "
        "the ledger. `public`: the server's own gradients with random labels on the text of [public] (or, "
        "without it, on its evaluation examples); this costs no privacy.",
    )
    rank: NonNegativeInt = Field(8, description="`low-rank`: maximum number of directions.")
    statistics_noise: PositiveFloat = Field(
        4.0,
        description="Noise multiplier of each client's release of statistics, relative to its zero-out sensitivity.",
    )
    noise: Literal["before-encoding", "in-code"] = Field(
        "before-encoding",
        description="Place of the privacy noise: on all coordinates of the update (the paper), or on the shorter code. "
        "`in-code` requires a codec with a known Lipschitz constant. With privacy.noise_by=server, the server "
        "adds the noise to the sum of the decoded updates, or of the codes.",
    )
    bits: Literal[32, 16, 8, 4] = Field(
        32, description="Bits per number of the code; 8 and 4 use unbiased stochastic rounding."
    )
    downlink: Literal["none", "fp16", "int8"] = Field(
        "none", description="Encoding of the parameters that the server sends to the clients."
    )
    steps: PositiveInt = Field(400, description="`autoencoder`: maximum number of training steps.")
    width: PositiveInt = Field(64, description="`autoencoder`: channels of the residual blocks.")

    @model_validator(mode="after")
    def _check(self) -> CodecSettings:
        if self.noise == "in-code" and not CODECS[self.name].lipschitz:
            raise ValueError(
                "Expected codec.noise=before-encoding for a codec without a known Lipschitz constant "
                "(the noise that a code needs is then unknown), got codec.noise=in-code with "
                f"codec.name={self.name}"
            )
        if self.bits != 32 and CODECS[self.name].own_format:
            raise ValueError(
                f"Expected codec.bits=32 for codec.name={self.name} (it has its own number format), "
                f"got codec.bits={self.bits}"
            )
        return self

    @property
    def active(self) -> bool:
        """True if updates are sent as codes."""
        return self.name != "none" or self.bits != 32

    @property
    def keeps_all(self) -> bool:
        """True if every coordinate is sent, in a shorter number format."""
        return CODECS[self.name].keeps_all

    @property
    def asks_silos(self) -> bool:
        """True if the silos release statistics before training."""
        return self.needs_prior and self.prior_source == "private"

    @property
    def needs_prior(self) -> bool:
        """True if the codec is fitted to a prior."""
        return CODECS[self.name].prior
