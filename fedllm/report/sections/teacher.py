"""Report section on the teacher on the server, and on measured membership inference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from fedllm.flatness.duplicate import RAW_DUPLICATE
from fedllm.report.record import RunRecord
from fedllm.report.schema_base import Part, Real
from fedllm.report.sections.training import number
from fedllm.run.folder import RunFolderError, read_json_file
from fedllm.settings.kinds import TEACHERS

DESCRIPTION, MEMBERSHIP = "teacher.json", "membership.json"
_SENTENCES = {
    "ema": "After each aggregation the server pulled the model towards a moving average of the models that "
    "this run had released before. That is post-processing of what was released: the guarantee is the one "
    "without it.",
    "public": "After each aggregation the server pulled the model towards a teacher that it had trained on "
    "public text before the first round. No silo's data is in that teacher: the guarantee is the one without "
    "it.",
    "nonprivate": "After each aggregation the server pulled the model towards a duplicate that the silos "
    "trained without clipping and noise. There is NO GUARANTEE for what the model or the duplicate tells, "
    "whatever noise the model's own updates carried.",
}


class PublicTeacherPart(Part):
    """The teacher's training on public text before the first round."""

    examples: int = Field(description="Public examples.")
    steps: int
    left_out_in_evaluation: int = Field(description="Public texts that the server evaluates on.")
    in_silos: int = Field(description="Public examples that a silo of the simulation has too.")
    evaluation: dict[str, Real] = Field(
        description="Of the teacher itself, on the server's examples."
    )
    sha256: str


class TeacherPart(Part):
    """The teacher that pulled the model on the server after each aggregation."""

    kind: str = Field(description="`ema`, `public`, `nonprivate`, or a kind of another package.")
    guarantee: bool = Field(description="Whether the guarantee is the one without it.")
    sentence: str
    strength: float
    steps: int = Field(description="On the server after each aggregation.")
    learning_rate: float
    decay: float | None
    distillation: float
    temperature: float | None
    start: int = Field(description="First rounds without it.")
    rounds: int = Field(description="Rounds in which it pulled.")
    seconds: float = Field(description="On the server, in all rounds.")
    last_distance: Real | None = Field(
        description="Norm of model minus teacher before the last pull."
    )
    last_divergence: Real | None = Field(
        description="Of the answers on public text before the last pull; null without distillation."
    )
    public: PublicTeacherPart | None


class MembershipPart(Part):
    """A measured attack on the model: no guarantee, and no bound."""

    attack: str
    auc: Real = Field(description="0.5 is guessing.")
    low: Real = Field(description="Of the 95% confidence interval of the AUC.")
    high: Real
    runs: int = Field(description="Models that it was measured on.")
    label: str | None = Field(description="What its author says of it.")


def teacher(run: RunRecord) -> dict[str, Any] | None:
    """Return the teacher of a run, from its settings and metrics; None if there was none, or the settings are lost."""
    if run.settings is None or run.settings.teacher.kind == "none":
        return None
    section = run.settings.teacher
    rounds = [record for record in run.metrics if record["kind"] == "round"]
    distances = [number(r["teacher_distance"]) for r in rounds if "teacher_distance" in r]
    divergences = [number(r["teacher_divergence"]) for r in rounds if "teacher_divergence" in r]
    return {
        "kind": section.kind,
        "guarantee": section.kind != "nonprivate",
        "sentence": _SENTENCES.get(section.kind) or _outside(section.kind),
        "strength": section.strength,
        "steps": section.steps,
        "learning_rate": section.learning_rate,
        "decay": section.decay if section.kind == "ema" else None,
        "distillation": section.distillation,
        "temperature": section.temperature if section.distillation else None,
        "start": section.start,
        "rounds": len(distances),
        "seconds": math.fsum(number(record.get("teacher_seconds")) for record in rounds),
        "last_distance": distances[-1] if distances else None,
        "last_divergence": divergences[-1] if divergences else None,
        "public": _public(run) if section.kind == "public" else None,
    }


def _outside(kind: str) -> str:
    """Describe a teacher of another package."""
    return (
        "After each aggregation the server pulled the model towards a teacher of another package, given the models "
        "that this run had released, public text and settings: post-processing, with the guarantee of a run without "
        f"it, as long as it reads nothing else. Its author's words: {TEACHERS[kind].sentence}"
    )


def teacher_defects(run: RunRecord) -> list[str]:
    """Return the reasons why the teacher voids the guarantee; empty if it does not."""
    kind = "none" if run.settings is None else run.settings.teacher.kind
    return [RAW_DUPLICATE] if kind == "nonprivate" else []


def membership(run: RunRecord) -> list[dict[str, Any]]:
    """Measured membership inference against the run's model: attack, AUC with its confidence interval,
    number of runs, and what is to be said of the measurement; empty where none was measured. What is
    damaged becomes a problem of the run.

    The file holds one such object, a list of them, or ``attacks`` with the list next to a ``label``.
    """
    found = _read(run, MEMBERSHIP)
    if found is None:
        return []
    rows = found.get("attacks", [found]) if isinstance(found, dict) else found
    label = found.get("label") if isinstance(found, dict) else None
    try:
        return [
            {
                "attack": str(row["attack"]),
                "auc": float(row["auc"]),
                "low": float(row["low"]),
                "high": float(row["high"]),
                "runs": int(row["runs"]),
                "label": str(label) if label else None,
            }
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        run.problems.append(
            f"{MEMBERSHIP} is damaged: expected attack, auc, low, high and runs of each attack ({error!r})"
        )
        return []


def _public(run: RunRecord) -> dict[str, Any] | None:
    found = _read(run, DESCRIPTION)
    if not isinstance(found, dict):
        return None
    judged = found.get("evaluation")
    judged = judged if isinstance(judged, Mapping) else {}
    return {
        "examples": int(number(found.get("examples"))),
        "steps": int(number(found.get("steps"))),
        "left_out_in_evaluation": int(number(found.get("left_out_in_evaluation"))),
        "in_silos": int(number(found.get("in_silos"))),
        "evaluation": {str(k): v for k, v in judged.items() if isinstance(v, int | float)},
        "sha256": str(found.get("sha256", "")),
    }


def _read(run: RunRecord, name: str) -> Any:
    if not (run.path / name).is_file():
        return None
    try:
        return read_json_file(run.path / name)
    except RunFolderError as error:
        run.problems.append(f"{name} is damaged: {error}")
        return None


MARKUP = """\
{% if taught %}
<p id="teacher"><strong>Teacher <code>{{ taught.kind }}</code>.</strong> {{ taught.sentence }}</p>
<p>{{ taught.rounds }} rounds with it{% if taught.start %}, after {{ taught.start }} without{% endif %}:
{{ taught.steps }} {{ "step" if taught.steps == 1 else "steps" }} each, closeness of weights (strength {{ "%g" | format(taught.strength) }}{% if taught.decay is not none %}, decay {{ "%g" | format(taught.decay) }}{% endif %})
{% if taught.distillation %}and of answers on public text (weight {{ "%g" | format(taught.distillation) }}, temperature {{ "%g" | format(taught.temperature) }}){% endif %},
{{ taught.seconds | seconds }} on the server{% if taught.last_distance is not none %}; distance of the weights before the last pull {{ "%.4g" | format(taught.last_distance) }}{% endif %}{% if taught.last_divergence is not none %}, divergence of the answers {{ "%.4g" | format(taught.last_divergence) }}{% endif %}.
{% if taught.public %}It was trained in {{ taught.public.steps | number }} steps on {{ taught.public.examples | number }} public examples ({{ taught.public.left_out_in_evaluation | number }} texts that the server evaluates on were left out{% if taught.public.in_silos %}; {{ taught.public.in_silos | number }} are examples of a silo too{% endif %}){% if taught.public.evaluation.accuracy is defined %}; by itself it reaches an accuracy of {{ "%.1f" | format(100 * taught.public.evaluation.accuracy) }}%{% endif %}.{% endif %}</p>
{% endif %}
"""

MEASURED = """\
{% if report.membership and not unguarded %}
<h2>Membership inference, measured</h2>
{{ measured(report.membership) }}
{% endif %}
"""

UNGUARDED = """\
{% if unguarded %}
<div class="notice warn" id="membership"><strong>Membership inference, measured:</strong>
{% if report.membership %}{{ measured(report.membership) }}{% else %}<p>Not measured for this model (no <code>membership.json</code> in the run folder; <code>python -m simulations.attacks.membership.run</code> writes it). Nothing bounds what it tells of a single record.</p>{% endif %}</div>
{% endif %}
"""
