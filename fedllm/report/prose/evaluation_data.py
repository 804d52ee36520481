"""State in one sentence which texts the server evaluates on."""

from __future__ import annotations

from pydantic import Field

from fedllm.data.public import EVALUATION_SHARE, Source, evaluation_source
from fedllm.report.schema_base import Part
from fedllm.settings.flatness import PublicSettings
from fedllm.settings.sections import DataSettings, EvaluationSettings


class EvaluationDataPart(Part):
    """The server's evaluation examples."""

    source: Source
    share: float = Field(description="Share of the silos' examples that the server has as text.")
    sentence: str


def evaluation_data(
    data: DataSettings, public: PublicSettings, evaluation: EvaluationSettings
) -> dict[str, object]:
    """Return what the server evaluates on, as plain values of :class:`EvaluationDataPart`."""
    source = evaluation_source(data, public)
    by_silos = {
        "private": " The silos evaluate on texts of their own and send noisy counts, which the ledger has.",
        "raw": " The silos evaluate on texts of their own and send exact counts.",
    }.get(evaluation.clients, "")
    sentence = {
        "holdout": f"The server has {data.holdout:.3g} of the silos' examples as plain text, to evaluate on "
        f"(data.holdout={data.holdout:g}). Nothing protects these texts, and no epsilon is about them.",
        "validation": f"The server evaluates on texts that it was given (data.validation={data.validation}). By the "
        "settings' word they are no silo's; nothing protects them.",
        "public": f"The server evaluates on {EVALUATION_SHARE:.0%} of the public text of [public], which may differ from "
        "the silos' texts. It has no text of a silo.",
        "none": "The server has no text to evaluate on, and none of a silo.",
    }[source]
    return {
        "source": source,
        "share": data.holdout if source == "holdout" else 0.0,
        "sentence": sentence + by_silos,
    }
