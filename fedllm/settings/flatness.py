"""The settings of Privacy-Flat (arXiv 2403.04124): flatness within a layer, across layers, across models.

Each of the three is off by default, works alone and with the others, and defaults to a form that
keeps the guarantee. The paper's own forms, which break it, are available for comparison. A run that uses
one has events without a guarantee in its ledger, and its report states this first.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fedllm.settings.kinds import TEACHERS
from fedllm.settings.section import NonNegativeInt, PositiveFloat, PositiveInt, Section

Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AwpSettings(Section):
    """Within a layer: adversarial weight perturbation during local training."""

    form: Literal["none", "per-example", "batch"] = Field(
        "none",
        description="Gradient that gives the adversarial perturbation of the prefix. `per-example`: each example's own "
        "gradient (two passes; the guarantee is unchanged). `batch`: the batch's raw gradient, as in the "
        "paper; this has no guarantee.",
    )
    gamma: PositiveFloat = Field(
        0.002,
        description="Norm of a layer's perturbation, relative to the norm of that layer's part of the adapter. Phrase-initialised "
        "prefixes are large; `per-example` fails on them from 0.01.",
    )
    rounds: PositiveInt | None = Field(
        None,
        description="Number of first rounds with the perturbation (the paper's awp_rounds); empty: all rounds.",
    )
    head: bool = Field(False, description="Also perturb the matrix of the head, as one more layer.")


class LayersSettings(Section):
    """Across layers: keep the prefix on the layers where removing it makes the loss sharper (Privacy-Flat)."""

    form: Literal["none", "public", "private", "private-top-k", "paper"] = Field(
        "none",
        description="Loss that scores the layers. `public`: the server's public text (free). `private`: bounded, noised "
        "scores of each silo (an event in the ledger). `private-top-k`: a noisy choice of layers by each silo. "
        "`paper`: the silos' raw scores; this has no guarantee.",
    )
    keep: PositiveInt = Field(3, description="Number of layers that stay in the adapter.")
    measure: Literal["ascent", "example-ascent", "random"] = Field(
        "ascent",
        description="Sharpness measure. `ascent`: one ascent step along the gradient of the mean loss (in the private "
        "forms, along each example's own gradient). `example-ascent`: one step along each example's own "
        "gradient in every form. `random`: mean over `directions` random directions, without gradients.",
    )
    directions: PositiveInt = Field(4, description="`random`: number of directions.")
    radius: PositiveFloat = Field(
        0.002,
        description="Norm of the perturbation, relative to the norm of the prefix of all candidate layers. "
        "Phrase-initialised prefixes are large: 0.05 is too far to separate flat from sharp layers. Random "
        "directions measure only curvature and need a radius about 100 times larger.",
    )
    examples: PositiveInt = Field(
        64,
        description="Number of examples per measurement: of the public text (selected by hash), or the expected size of a "
        "silo's Poisson sample and the divisor of its sum.",
    )
    search: Literal["one-shot", "greedy"] = Field(
        "one-shot",
        description="`one-shot` drops all layers after one measurement; `greedy` drops one layer at a time and measures "
        "again.",
    )
    after: NonNegativeInt = Field(
        0, description="Number of warm-up rounds before the choice; 0 chooses before training."
    )
    bound: PositiveFloat | None = Field(
        None,
        description="Private forms: bound on the differences of an example's scores from their mean over the layers "
        "(`private`: on their root mean square; `private-top-k`: on each). Empty: every example's differences "
        "are normalised to the same size, so that no bound is needed.",
    )
    noise: PositiveFloat = Field(
        2.0,
        description="`private`: noise multiplier of a release of scores, relative to the L2 sensitivity of the vector of "
        "all scores.",
    )
    epsilon: PositiveFloat = Field(
        0.5, description="`private-top-k`: epsilon (pure DP) of one noisy choice by a silo."
    )
    releases: PositiveInt | None = Field(
        None,
        description="Number of releases by each silo: 1, or with `greedy` one per dropped layer. The run computes it from "
        "the number of layers.",
    )

    @property
    def asks_silos(self) -> bool:
        """True if the silos release anything for the choice."""
        return self.form not in ("none", "public")


class TeacherSettings(Section):
    """Across models: after each aggregation the server steps the private model towards a flatter one."""

    kind: Annotated[str, AfterValidator(TEACHERS.check)] = Field(
        "none",
        description="Teacher model. `ema`: moving average of the private models already released (free). `public`: trained "
        "by the server on the data of [public]. `nonprivate`: a duplicate that the silos train without noise, "
        "as in the paper; this has no guarantee. Another package may register more.",
    )
    strength: Strength = Field(
        0.1,
        description="Weight lambda of the term lambda/2 |w - w'|^2 that keeps the weights close; 0 omits the term.",
    )
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="`ema`: decay per round.")
    steps: PositiveInt = Field(
        1, description="Number of steps on the server after each aggregation."
    )
    learning_rate: PositiveFloat = Field(
        1.0,
        description="Learning rate of these steps. Without distillation, a step moves the weights by the share "
        "learning_rate x strength.",
    )
    distillation: Strength = Field(
        0.0,
        description="Weight of the Kullback-Leibler divergence between the outputs of the teacher and of the model on the "
        "text of [public] (labels unused); 0 omits the term.",
    )
    temperature: PositiveFloat = Field(1.0, description="Softmax temperature of the distillation.")
    batch_size: PositiveInt = Field(
        64,
        description="Number of public examples per step (distillation, training of the teacher).",
    )
    public_steps: PositiveInt = Field(
        200, description="`public`: number of training steps of the teacher."
    )
    public_learning_rate: PositiveFloat = Field(
        5e-3, description="`public`: Adam's learning rate for the teacher's training."
    )
    start: NonNegativeInt = Field(0, description="Number of first rounds without the teacher.")

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
    """Public text at the server. It belongs to no silo and is not used for evaluation."""

    source: Literal["none", "tweets", "files", "hub"] = Field(
        "none", description="Source of the public text, as in data.source; `none`: no public text."
    )
    path: str | None = Field(
        None,
        description="Hub data set id, or the file (JSONL, JSONL.gz, CSV). `~`, $VARIABLES and relative paths work as in "
        "data.path.",
    )
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    split: str = Field("train", description="Split name on the hub.")
    encoding: str = Field("utf-8", description="Text encoding of the file.")
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None,
        description="Column delimiter of a CSV, TSV or TXT file; empty: detected from the header.",
    )
    limit: PositiveInt | None = Field(
        2000, description="Maximum number of examples, selected by a hash of the text."
    )
    text: tuple[str, ...] | None = Field(
        None, description="Columns with the input; empty: those of task.text."
    )
    target: str | None = Field(
        None, description="Column with the class or target text; empty: that of task.target."
    )
    labels: dict[str, str] = Field(
        {},
        description='Map from the classes of the public data to those of the task, such as {positive = "1"}; examples of '
        "other classes are dropped. Empty: the names are equal.",
    )
