"""The settings of Privacy-Flat (arXiv 2403.04124): flatness within a layer, across layers, across models.

Each of the three is off unless named, works alone and with the others, and defaults to a form that
keeps the guarantee. The paper's own forms that break it are there under their names, and a run that uses
one has events without a guarantee in its ledger, and a report that says so first.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedllm.settings.section import NonNegativeInt, PositiveFloat, PositiveInt, Section

Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AwpSettings(Section):
    """Within a layer: adversarial weight perturbation during local training."""

    form: Literal["none", "per-example", "batch"] = Field(
        "none",
        description="Where the perturbation of the prefix comes from, at which the gradient is taken: "
        "`per-example` each example's own gradient (two passes; guarantee unchanged); `batch` this batch's "
        "raw gradient, as the paper writes it: no guarantee.",
    )
    gamma: PositiveFloat = Field(
        0.002,
        description="Norm of a layer's perturbation over the norm of that layer's prefix. A prefix made "
        "of a phrase is large, and `per-example` drowns it at 0.01 already.",
    )
    rounds: PositiveInt | None = Field(
        None, description="Only in so many first rounds (the paper's awp_rounds); empty: in all."
    )
    head: bool = Field(False, description="Perturb the head's matrix too, as one more layer.")


class LayersSettings(Section):
    """Across layers: keep the prefix where its removal makes the loss sharper (Privacy-Flat's sparse prefix)."""

    form: Literal["none", "public", "private", "private-top-k", "paper"] = Field(
        "none",
        description="Whose loss the layers are judged by: `public` text at the server (free); `private`: each "
        "silo's bounded, noised scores (an event in the ledger); `private-top-k`: each silo's noisy choice "
        "of layers; `paper`: the silos' raw scores, no guarantee.",
    )
    keep: PositiveInt = Field(3, description="Layers that keep their prefix.")
    measure: Literal["ascent", "example-ascent", "random"] = Field(
        "ascent",
        description="Sharpness by one ascent step along the mean loss's gradient (the private forms: "
        "each example's own), by one along each example's own gradient in every form, or as the mean "
        "over `directions` random ones (which needs no gradient).",
    )
    directions: PositiveInt = Field(4, description="`random`: number of directions.")
    radius: PositiveFloat = Field(
        0.002,
        description="Norm of the perturbation over the norm of the prefix of all layers to choose from. "
        "A prefix made of a phrase is large: 0.05 leaves what is flat or sharp far behind. Random "
        "directions see the curvature alone, and want about a hundred times more.",
    )
    examples: PositiveInt = Field(
        64,
        description="Examples of a measurement: of the public text (first by hash), or the expected "
        "size of a silo's Poisson sample, and the divisor of its sum.",
    )
    search: Literal["one-shot", "greedy"] = Field(
        "one-shot",
        description="Drop all layers after one measurement, or one at a time with a new one each.",
    )
    after: NonNegativeInt = Field(
        0, description="Warm-up rounds before the choice; 0 chooses before training."
    )
    bound: PositiveFloat | None = Field(
        None,
        description="Private forms: bound of an example's differences from their mean over the layers "
        "(`private`: of their root mean square; `private-top-k`: of each). Empty: every example's "
        "differences are scaled to the same size, so that there is no bound to choose.",
    )
    noise: PositiveFloat = Field(
        2.0,
        description="`private`: noise multiplier of a release of scores, over the L2 sensitivity of the "
        "whole vector of scores.",
    )
    epsilon: PositiveFloat = Field(
        0.5, description="`private-top-k`: epsilon (pure) of one noisy choice by a silo."
    )
    releases: PositiveInt | None = Field(
        None,
        description="Releases by each silo: 1, or with `greedy` one for each layer that is dropped. "
        "The run fills it in, from the number of layers.",
    )

    @property
    def asks_silos(self) -> bool:
        """Whether the silos release anything for the choice."""
        return self.form not in ("none", "public")


class TeacherSettings(Section):
    """Across models: the server pulls the private model towards a flatter one after each aggregation."""

    kind: Literal["none", "ema", "public", "nonprivate"] = Field(
        "none",
        description="`ema`: moving average of the private models already released (free); `public`: trained "
        "by the server on the data of [public]; `nonprivate`: a duplicate that the silos train without noise, "
        "as the paper writes it: no guarantee.",
    )
    strength: Strength = Field(
        0.1, description="Lambda of lambda/2 |w - w'|^2, the closeness of weights; 0 leaves it out."
    )
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="`ema`: decay a round.")
    steps: PositiveInt = Field(1, description="Steps on the server after each aggregation.")
    learning_rate: PositiveFloat = Field(
        1.0,
        description="Of these steps. Closeness alone moves by the share learning_rate x strength.",
    )
    distillation: Strength = Field(
        0.0,
        description="Weight of the Kullback-Leibler divergence between the teacher's and the model's "
        "outputs on the text of [public] (labels unused); 0 leaves it out.",
    )
    temperature: PositiveFloat = Field(1.0, description="Softmax temperature of the distillation.")
    batch_size: PositiveInt = Field(
        64, description="Public examples of a step (distillation, training of the teacher)."
    )
    public_steps: PositiveInt = Field(200, description="`public`: training steps of the teacher.")
    public_learning_rate: PositiveFloat = Field(
        5e-3, description="`public`: Adam's learning rate in these steps."
    )
    start: NonNegativeInt = Field(0, description="Rounds without the teacher at the beginning.")

    @model_validator(mode="after")
    def _check(self) -> TeacherSettings:
        if self.kind != "none" and self.strength == 0 and self.distillation == 0:
            raise ValueError(
                "Expected teacher.strength > 0 or teacher.distillation > 0 for "
                f"teacher.kind={self.kind}, got both 0"
            )
        if self.learning_rate * self.strength > 1:
            raise ValueError(
                "Expected teacher.learning_rate x teacher.strength <= 1 (1 sets the weights to the "
                f"teacher's), got {self.learning_rate:g} x {self.strength:g}"
            )
        return self


class PublicSettings(Section):
    """Public text at the server: of no silo, and not what the model is judged by."""

    source: Literal["none", "tweets", "files", "hub"] = Field(
        "none", description="As data.source; `none`: there is no public text."
    )
    path: str | None = Field(
        None,
        description="Hub data set id, or the file (JSONL, JSONL.gz, CSV); `~`, $VARIABLES and relative paths as in data.path.",
    )
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    split: str = Field("train", description="Split name on the hub.")
    encoding: str = Field("utf-8", description="Text encoding of the file.")
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None, description="Of a CSV, TSV or TXT file; empty: found from the header."
    )
    limit: PositiveInt | None = Field(2000, description="Examples used, first by hash of the text.")
    text: tuple[str, ...] | None = Field(
        None, description="Columns with the input, where they are named otherwise than task.text."
    )
    target: str | None = Field(
        None, description="Column with the class or text to write, where it is not task.target."
    )
    labels: dict[str, str] = Field(
        {},
        description='The class of the task that each class of the public data stands for, such as {positive = "1"}; '
        "examples of other classes are left out. Empty: the same names.",
    )
