"""The settings of section ``[server]``: rounds, which silos, aggregation, the server's optimiser; what does not go
with them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedllm.settings.section import PositiveFloat, PositiveInt, Rate, Section


class ServerSettings(Section):
    """Rounds, sampling of silos, aggregation, the server's optimiser."""

    rounds: PositiveInt = Field(40, description="Rounds of training.")
    fraction: Rate = Field(1.0, description="Share of the silos that take part in a round.")
    sampling: Literal["fixed", "poisson"] = Field(
        "fixed",
        description="Draw a fixed number of silos, or each by itself (Poisson; needed for "
        'privacy.unit = "client" with amplification).',
    )
    optimizer: Literal["sgd", "adam"] = Field("adam", description="Optimiser on the mean update.")
    learning_rate: PositiveFloat = Field(0.01, description="Server learning rate.")
    head_learning_rate: PositiveFloat | None = Field(
        None, description="Learning rate of the head where it differs (a head bears larger steps)."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="SGD momentum, Adam beta1."
    )
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.99, description="Adam's second decay.")
    adam_epsilon: PositiveFloat = Field(1e-8, description="Adam's epsilon.")
    noise_correction: bool = Field(
        False,
        description="Adam: subtract the known variance of the privacy noise from the second "
        "moment (DP-AdamBC, Tang et al. 2023), so that noise is not mistaken for signal.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="Learning rate over the rounds, down to `final_rate` of it."
    )
    final_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="Last rate over first."
    )
    averaging: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Decay of an exponential moving average of the released models that is "
        "evaluated and exported (post-processing, free); 0 uses the last model.",
    )
    min_clients: PositiveInt = Field(
        1, description="The run ends where fewer silos than this can still take part."
    )
    max_failures: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="Share of failed or refused replies in a round above which the run stops."
    )
    max_update_norm: PositiveFloat = Field(
        1e4,
        description="A silo's update with a larger L2 norm is refused and counted; so is, below that, one that is "
        "longer than clipping and noise can make an honest one, wherever that is known (docs/guides/poison.md).",
    )
    max_noise_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        10.0,
        description="Where silos calibrate their noise: one that says its noise (over its batch size) is more than "
        "this times the median silo's is refused, honest or not: its update would drown the others', and could be so "
        "much longer than theirs.",
    )
    aggregation: Literal["mean", "median", "trimmed-mean", "norm-clipped-mean"] = Field(
        "mean",
        description="How the silos' updates become one. `median` and `trimmed-mean` (coordinate by coordinate) and "
        "`norm-clipped-mean` (each cut to the median norm) bear some hostile silos, for more noise. Not for "
        'privacy.noise_by = "server", whose noise is made for a sum.',
    )
    trim: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.25,
        description="`trimmed-mean`: share of the silos' values left out at each end of every coordinate, rounded up; "
        "at least one value stays.",
    )
    timeout: PositiveFloat = Field(
        3600.0, description="Seconds to wait for the replies of a round."
    )
    wait_for_clients: PositiveFloat = Field(
        300.0, description="Seconds to wait for the silos to connect before the run gives up."
    )
    checkpoint_every: PositiveInt = Field(1, description="Rounds between checkpoints.")
    keep_checkpoints: PositiveInt = Field(2, description="Number of last checkpoints kept.")
