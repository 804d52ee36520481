"""Settings of the adapter, the trained part of the frozen model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fedllm.settings.section import PositiveFloat, PositiveInt, Section

Form = Literal[
    "prefix", "lora", "ffa-lora", "rolora", "fedsvd", "bitfit", "last-layers", "full", "head"
]
TOP = (-1,)
"""Layers of ``last-layers`` where none are given: fewer coordinates carry less noise."""


class AdapterSettings(Section):
    """The trained part of the frozen model; a classification head is trained with it."""

    form: Form = Field(
        "prefix",
        description="`prefix`: keys and values in front of the attention layers ([prefix]). `lora`: low-rank changes "
        "of linear maps. `ffa-lora`: LoRA with its first factor fixed, so that means over silos are exact. `rolora`: "
        "LoRA that trains one factor a round, in turn. `fedsvd`: `ffa-lora` whose factors the server rewrites by a "
        "singular value decomposition after each round. `bitfit`: biases and the scales of normalisations. "
        "`last-layers`: all weights of the layers in `layers` and the normalisations that follow the last layer. `full`: "
        "all weights. `head`: the classification head alone.",
    )
    rank: PositiveInt = Field(8, description="LoRA: rank of each change.")
    alpha: PositiveFloat = Field(
        16.0, description="LoRA: each change is scaled by `alpha` / `rank`."
    )
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="LoRA: linear maps that are changed, by name as in PEFT's `target_modules`, for example "
        '`["query", "value"]`; `all-linear`: all within the layers.',
    )
    init: Literal["random", "principal"] = Field(
        "random",
        description="LoRA: start of the first factor of each change; the second one starts at zero. `random`: random "
        "orthonormal rows. `principal`: the principal directions of the inputs of each map on the text of [public].",
    )
    layers: Literal["all"] | tuple[int, ...] = Field(
        "all",
        description="LoRA, BitFit, last-layers and full: `all`, or the numbers of the layers that are changed; negative "
        "numbers count from the top. Default of `last-layers`: the top layer, `[-1]`. `full` "
        "also trains all modules outside of layers.",
    )

    @model_validator(mode="before")
    @classmethod
    def _top_layer(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("form") == "last-layers":
            return {"layers": TOP} | data
        return data

    @property
    def whole_weights(self) -> bool:
        """True if the form trains whole matrices, which all examples share."""
        return self.form in ("last-layers", "full")

    @property
    def low_rank(self) -> bool:
        """True if the form is one of LoRA."""
        return self.form in ("lora", "ffa-lora", "rolora", "fedsvd")
