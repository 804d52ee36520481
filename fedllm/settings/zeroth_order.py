"""The settings of training through a model's outputs alone (``model.access = "black-box"``)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedllm.settings.section import NonNegativeInt, PositiveFloat, PositiveInt, Section


class ZerothOrderSettings(Section):
    """Steps along random directions: a silo's message is one number for each of them."""

    directions: PositiveInt = Field(
        8,
        description="Random directions of a step, and numbers that a silo sends for it. A step costs two "
        "forward passes over its batch for each.",
    )
    smoothing: PositiveFloat = Field(
        0.01,
        description="c of the difference quotient (loss(w + c z) - loss(w - c z)) / 2c that privacy.clip "
        "bounds, in units of `scale`.",
    )
    scale: Literal["prefix", "one"] = Field(
        "prefix",
        description="Size of a direction's entries: `prefix` the root mean square of each layer's keys, and "
        "of its values, in the round's model (which is public), and 1 for a head; `one` 1 for all.",
    )
    subspace: NonNegativeInt = Field(
        0,
        description="Dimension of a random subspace, the same in all rounds, in which the directions lie: "
        "fewer numbers to find, and fewer that can be reached. 0: all coordinates.",
    )


class EndpointSettings(Section):
    """A model behind an HTTP endpoint (OpenAI-compatible completions with log-probabilities)."""

    url: str = Field(
        "",
        description="Base address on this machine, such as http://localhost:8080/v1; one elsewhere only by the "
        "environment variable FEDLLM_ENDPOINT_URL of each silo and of the server, since a silo's texts are "
        "sent there (a key: FEDLLM_ENDPOINT_KEY). Empty: the model of [model] is used.",
    )
    model: str = Field("", description="Name of the model at the endpoint.")
    prompts: tuple[str, ...] = Field(
        (),
        description="Wordings of the input, each with {column} for each text column; the weights of the prompts "
        "are trained. Empty: task.prompt alone.",
    )
    top: PositiveInt = Field(
        20,
        description="Log-probabilities to ask for: a label word that is not among so many likeliest tokens "
        "counts as the last of them.",
    )
    timeout: PositiveFloat = Field(60.0, description="Seconds to wait for one answer.")

    @property
    def active(self) -> bool:
        """Whether the model is behind an endpoint."""
        return bool(self.url)
