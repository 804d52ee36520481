"""Settings of training through a model's outputs alone (``model.access = "black-box"``)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedllm.settings.section import NonNegativeInt, PositiveFloat, PositiveInt, Section


class ZerothOrderSettings(Section):
    """Steps along random directions: a silo sends one scalar estimate per direction."""

    directions: PositiveInt = Field(
        8,
        description="Number of random directions per step, and of scalar estimates that a silo sends. Each direction costs "
        "two forward passes over the batch.",
    )
    smoothing: PositiveFloat = Field(
        0.01,
        description="Step c of the difference quotient (loss(w + c z) - loss(w - c z)) / 2c, in units of `scale`. "
        "privacy.clip bounds this quotient.",
    )
    scale: Literal["prefix", "one"] = Field(
        "prefix",
        description="Size of a direction's entries. `prefix`: the root mean square of each layer's keys and of its values "
        "in the round's model (which is public), and 1 for a head. `one`: 1 for all.",
    )
    subspace: NonNegativeInt = Field(
        0,
        description="Dimension of a fixed random subspace that contains all directions: it has fewer coordinates to "
        "estimate, and fewer models can be reached. 0: all coordinates.",
    )


class EndpointSettings(Section):
    """A model behind an HTTP endpoint (OpenAI-compatible completions with log-probabilities)."""

    url: str = Field(
        "",
        description="Base address of the endpoint on this machine, such as http://localhost:8080/v1. An address on another "
        "machine must be set by the environment variable FEDLLM_ENDPOINT_URL of each silo and of the server, "
        "because a silo's texts are sent there (key: FEDLLM_ENDPOINT_KEY). Empty: the model of [model] is used.",
    )
    model: str = Field("", description="Name of the model at the endpoint.")
    prompts: tuple[str, ...] = Field(
        (),
        description="Prompt templates, each with {column} for each text column; their weights are trained. Empty: "
        "task.prompt only.",
    )
    top: PositiveInt = Field(
        20,
        description="Number of log-probabilities to request. A label word outside this many likeliest tokens is scored as "
        "the last of them.",
    )
    timeout: PositiveFloat = Field(
        60.0, description="Maximum time in seconds to wait for one answer."
    )

    @property
    def active(self) -> bool:
        """True if the model is behind an endpoint."""
        return bool(self.url)
