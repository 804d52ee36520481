"""Settings of section ``[clipping]``: the adaptive clipping norm."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedllm.settings.section import PositiveFloat, Section

Share = Annotated[float, Field(gt=0, lt=1)]


class ClippingSettings(Section):
    """A fixed clipping norm, or one that follows a quantile of the norms."""

    form: Literal["fixed", "adaptive"] = Field(
        "fixed",
        description="`fixed` uses privacy.clip in every round. `adaptive` starts from privacy.clip; after each round the "
        "server updates the norm from a noisy count of the gradients (unit example) or updates (unit client) "
        "that are not longer than it. The counts are events in the ledger. Without privacy nothing is clipped.",
    )
    quantile: Share = Field(
        0.5, description="Target share of norms that are at most the clipping norm."
    )
    learning_rate: PositiveFloat = Field(
        0.2, description="Learning rate of the norm's logarithm, and its largest change per round."
    )
    count_share: Share = Field(
        0.01,
        description="Share p of the noise's cost (1/z^2) that is spent on the counts. The sum then gets 1/sqrt(1-p) times "
        "the noise multiplier z, and the count of B expected records an error of z/(2 sqrt(p) B).",
    )
