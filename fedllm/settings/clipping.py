"""Settings of section ``[clipping]``: the adaptive clipping norm, and what it cannot be combined with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedllm.settings.section import PositiveFloat, Section

Share = Annotated[float, Field(gt=0, lt=1)]


class ClippingSettings(Section):
    """Whether the clipping norm stays, or follows a quantile of the norms."""

    form: Literal["fixed", "adaptive"] = Field(
        "fixed",
        description="`fixed`: privacy.clip in every round. `adaptive`: it starts there, and the server moves it "
        "after each round by a noisy count of the gradients (unit example) or updates (unit client) that are no "
        "longer than it; the counts are in the ledger. Without privacy nothing is clipped.",
    )
    quantile: Share = Field(
        0.5, description="Share of the norms that is to be at most the clipping norm."
    )
    learning_rate: PositiveFloat = Field(
        0.2, description="Rate of the norm's logarithm: a round moves it by at most this."
    )
    count_share: Share = Field(
        0.01,
        description="Share of the noise's cost (1/z^2) that goes into the counts: with p the sum has "
        "1/sqrt(1-p) times the noise multiplier z, and the count of B expected records an error of z/(2 sqrt(p) B).",
    )
