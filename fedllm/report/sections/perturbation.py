"""The report on adversarial weight perturbation: which form, how far, and what it means for the guarantee."""

from __future__ import annotations

from typing import Any

from fedllm.settings.experiment import Settings
from fedllm.training.perturbation import UNBOUNDED_ASCENT

_BY_EXAMPLE = {
    "per-example": "Each example's gradient is taken at weights perturbed along that example's own "
    "gradient. What it adds to the sum depends on it alone and is clipped as ever: the guarantee is that "
    "of training without perturbation.",
    "batch": f"No guarantee: {UNBOUNDED_ASCENT}.",
}


def perturbation(settings: Settings | None) -> dict[str, Any] | None:
    """Return the perturbation of the local training; None if there is none, or the settings are lost."""
    if settings is None or settings.awp.form == "none":
        return None
    awp = settings.awp
    return {
        "form": awp.form,
        "gamma": awp.gamma,
        "rounds": awp.rounds,
        "head": awp.head,
        "guarantee": meaning(settings),
    }


def meaning(settings: Settings) -> str:
    """Describe the effect of the perturbation on the guarantee."""
    if settings.privacy.mode == "none":
        return "Nothing is guaranteed (privacy.mode = none), in whatever form."
    if settings.privacy.unit == "client":
        return (
            "The weights are perturbed within a silo's local training, whose update is clipped and noised "
            "as a whole afterwards: whatever the form, the guarantee is that of training without "
            "perturbation."
        )
    return _BY_EXAMPLE[settings.awp.form]


MARKUP = """\
{% if training.perturbation %}
{% set awp = training.perturbation %}
<p>Gradients were taken at adversarially perturbed weights{% if awp.rounds %} in the first {{ awp.rounds | number }} {{ "round" if awp.rounds == 1 else "rounds" }}{% endif %} (form <strong>{{ awp.form }}</strong>, gamma {{ "%.4g" | format(awp.gamma) }} of the norm of each layer of the adapter{{ " and of the head" if awp.head }}). {{ awp.guarantee }}</p>
{% endif %}
"""
