"""Settings of section ``[server]``: rounds, sampling of silos, aggregation, the server's optimiser."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedllm.settings.section import PositiveFloat, PositiveInt, Rate, Section


class ServerSettings(Section):
    """Rounds, sampling of silos, aggregation, the server's optimiser."""

    rounds: PositiveInt = Field(40, description="Number of training rounds.")
    fraction: Rate = Field(1.0, description="Share of the silos that take part in a round.")
    sampling: Literal["fixed", "poisson"] = Field(
        "fixed",
        description="`fixed` draws a fixed number of silos per round; `poisson` draws each silo independently (required "
        'for amplification with privacy.unit = "client").',
    )
    optimizer: Literal["sgd", "adam"] = Field(
        "adam", description="Optimiser that is applied to the mean update."
    )
    learning_rate: PositiveFloat = Field(0.01, description="Learning rate of the server.")
    head_learning_rate: PositiveFloat | None = Field(
        None,
        description="Learning rate of the head, which tolerates larger steps; empty: `learning_rate`.",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="Momentum of SGD, or beta1 of Adam."
    )
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99, description="Beta2 of Adam: decay of the second moment."
    )
    adam_epsilon: PositiveFloat = Field(1e-8, description="Epsilon in Adam's denominator.")
    noise_correction: bool = Field(
        False,
        description="Adam: subtract the known variance of the privacy noise from the second moment, so that noise is not "
        "mistaken for signal (DP-AdamBC, Tang et al. 2023).",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear",
        description="Schedule of the learning rate over the rounds, down to the share `final_rate`.",
    )
    final_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="Ratio of the last learning rate to the first."
    )
    averaging: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Decay of an exponential moving average of the released models, which is then evaluated and exported "
        "(post-processing, free); 0 uses the last model.",
    )
    min_clients: PositiveInt = Field(
        1, description="Minimum number of silos that can still take part; with fewer the run ends."
    )
    max_failures: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="Share of failed or refused replies in a round above which the run stops."
    )
    max_update_norm: PositiveFloat = Field(
        1e4,
        description="Maximum L2 norm of a silo's update; longer updates are refused and counted. An update that is longer "
        "than clipping and noise allow for an honest silo is refused too, if that limit is known "
        "(docs/guides/poison.md).",
    )
    max_noise_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        10.0,
        description="Maximum of a silo's declared noise (over its batch size), relative to the median silo's, if silos "
        "calibrate their noise. A silo above it is refused, honest or not: its update would dominate the "
        "others.",
    )
    aggregation: Literal["mean", "median", "trimmed-mean", "norm-clipped-mean"] = Field(
        "mean",
        description="Aggregation of the silos' updates. `median` and `trimmed-mean` (per coordinate) and "
        "`norm-clipped-mean` (each update clipped to the median norm) tolerate some hostile silos, at the "
        'price of more noise. Not allowed with privacy.noise_by = "server", whose noise is calibrated for a '
        "sum.",
    )
    trim: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.25,
        description="`trimmed-mean`: share of values dropped at each end of every coordinate, rounded up; at least one "
        "value remains.",
    )
    timeout: PositiveFloat = Field(
        3600.0, description="Maximum time in seconds to wait for the replies of a round."
    )
    wait_for_clients: PositiveFloat = Field(
        300.0,
        description="Maximum time in seconds to wait for the silos to connect; then the run fails.",
    )
    checkpoint_every: PositiveInt = Field(1, description="Number of rounds between checkpoints.")
    keep_checkpoints: PositiveInt = Field(
        2, description="Number of most recent checkpoints to keep."
    )
