"""The settings of section ``[clipping]``: a clipping norm that follows the norms; what does not go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedllm.settings_section import PositiveFloat, Section

if TYPE_CHECKING:
    from fedllm.settings import Settings

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


def check_clipping(settings: Settings) -> None:
    """Whether what is released beside the counts can be accounted together with them.

    Raises:
        ValueError: it cannot; the message names both settings.
    """
    if settings.clipping.form == "fixed":
        return
    privacy = settings.privacy
    refused = {
        f"privacy.mechanism={privacy.mechanism}": (
            privacy.mechanism != "gaussian",
            "privacy.mechanism=gaussian",
            "sum and count are one Gaussian mechanism together",
        ),
        f"codec.name={settings.codec.name}, codec.bits={settings.codec.bits}": (
            settings.codec.active,
            "no codec",
            "it is made for one clipping norm",
        ),
        "awp.form=private-ascent": (
            settings.awp.form == "private-ascent",
            "another awp.form",
            "each step releases two sums then, and which of them the count is about is not settled",
        ),
        "model.access=black-box": (
            settings.model.access == "black-box",
            "model.access=white-box",
            "there are no gradients whose norms could be counted",
        ),
    }
    for got, (asked, expected, why) in refused.items():
        if asked:
            raise ValueError(f"Expected {expected} for clipping.form=adaptive ({why}), got {got}")
