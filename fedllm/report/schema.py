"""The schema of ``report.json``: typed models, and from them a JSON Schema (draft 2020-12).

The model of a section stands in the section's file.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fedllm.report.guarantee import GuaranteePart
from fedllm.report.prose.evaluation_data import EvaluationDataPart
from fedllm.report.prose.strength import StrengthPart
from fedllm.report.schema_base import Part, Real, TitledPart
from fedllm.report.sections.black_box import BlackBoxPart
from fedllm.report.sections.copies import CopiesPart
from fedllm.report.sections.encoding import EncodingPart
from fedllm.report.sections.layers import LayersPart
from fedllm.report.sections.ledger import LedgerPart, VouchingPart
from fedllm.report.sections.lmo import LmoPart
from fedllm.report.sections.released import ReleasePart
from fedllm.report.sections.silo_curves import MeaningPart, PrivacyCurvesPart, RoundCurvesPart
from fedllm.report.sections.spent import AccountantPart, SiloPart
from fedllm.report.sections.teacher import MembershipPart, TeacherPart

VERSION = 4
SCHEMA_ID = f"urn:fedllm:report:{VERSION}"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class RunPart(Part):
    """The run and its progress. Null: unknown, because the file is lost."""

    folder: str
    name: str
    run_id: str | None
    status: str
    round: int
    rounds: int | None
    message: str | None
    created: str | None
    updated: str | None
    silos: list[str] = Field(description="Names in silos.json.")


class StepPart(TitledPart):
    """A text with its title and a command."""

    command: str


class TargetPart(Part):
    """The targets of the settings."""

    epsilon: Real | None
    delta: float | None


class Report(Part):
    """The accounting report of one run."""

    format: Literal["fedllm-report"]
    version: Literal[4]
    schema_: Literal["urn:fedllm:report:4"] = Field(alias="schema")
    made: str
    made_by: str
    headline: str
    guarantee: GuaranteePart
    evaluation_data: EvaluationDataPart | None = Field(
        description="Whose texts the server has. Null: the settings are lost."
    )
    strength: StrengthPart | None = Field(description="Null: no finite epsilon is stated.")
    warnings: list[str] = Field(description="What the run warned of, as the terminal printed it.")
    problems: list[str] = Field(description="What is missing or damaged in the run folder.")
    notes: list[str] = Field(description="What is unfinished.")
    run: RunPart
    silos: list[SiloPart]
    epsilon_by_round: RoundCurvesPart
    privacy_curves: PrivacyCurvesPart | None
    copies: CopiesPart | None = Field(
        description="What all copies of one record cost; null for unit client, or without a guarantee."
    )
    meaning: MeaningPart | None
    accountants: list[AccountantPart]
    releases: list[ReleasePart]
    encoding: EncodingPart | None = Field(description="Null: updates are sent without a codec.")
    layers: LayersPart | None = Field(description="Null: all layers of the settings were trained.")
    lmo: LmoPart | None = Field(description="Null: no vector was released with LMO noise.")
    black_box: BlackBoxPart | None = Field(description="Null: trained by gradients.")
    assumptions: list[TitledPart]
    not_covered: list[TitledPart]
    ledger: LedgerPart
    vouching: list[VouchingPart] | None = Field(
        description="Of a deployed run, whose ledgers are with the silos. Null: the ledger is here."
    )
    training: dict[str, Any] = Field(
        description="Evaluations, rounds, traffic, failures, perturbation of weights."
    )
    teacher: TeacherPart | None = Field(description="Null: no teacher.")
    membership: list[MembershipPart]
    target: TargetPart
    settings: dict[str, Any] | None = Field(description="As settings.toml; null where it is lost.")
    environment: dict[str, Any] | None
    reproduce: list[StepPart]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of ``report.json``."""
    schema = Report.model_json_schema(by_alias=True)
    return {"$schema": DIALECT, "$id": SCHEMA_ID, **schema}
