"""The report's table of what each silo spent, by adversary and accountant."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import Field

from fedllm.budget.limits import protected_from
from fedllm.report import accounting
from fedllm.report.accounting import Accounts, SiloAccounting
from fedllm.report.guarantee import shown
from fedllm.report.guarded import guarded
from fedllm.report.record import RunRecord
from fedllm.report.schema_base import Part, Real
from privacy.accountants import make_accountant
from privacy.guarantee import SERVER, Adversary, Relation
from privacy.ledger.ledger import composed

CLEARLY = 0.99
"""An approximation below this share of the headline's (tight) bound under-reports."""


class FigurePart(Part):
    """One accountant's result."""

    accountant: str
    epsilon: Real | None = Field(description="Null: the accountant cannot represent an event.")
    bound: bool
    mu: Real | None
    note: str


class AdversaryPart(Part):
    """A silo's figures against one adversary."""

    headline: FigurePart
    figures: list[FigurePart] = Field(description="Of the releases so far.")
    held: FigurePart | None = Field(
        None,
        description="What holds where it is not the headline: the run's plan (accountant plan) or the budget that a "
        "filter kept (accountant filter); its epsilon is null where the headline holds under the condition in note alone.",
    )
    reasons: list[str] = Field(
        description="Reasons for having no guarantee; empty if there is one."
    )


class TrainingMechanismPart(Part):
    """Steps of this run with one sampling rate and noise."""

    sampling_rate: Real
    noise_multiplier: Real
    steps: int


class SiloTargetPart(Part):
    """The targets of a silo's settings."""

    epsilon: Real | None = Field(description="For all runs on the ledger together.")
    run_epsilon: Real | None = Field(description="For this run alone.")
    delta: float | None
    spent: Real | None = Field(
        description="Epsilon at the silo's delta, against the server (secure aggregation: one that learns sums); null where that is the report's."
    )


class SiloPart(Part):
    """The uses of one silo's data, and their cost."""

    silo: str
    examples: int | None = Field(description="Null if private or unknown.")
    left: Any = Field(description="Why the silo left the run, or null.")
    rounds: int
    trainings: list[TrainingMechanismPart]
    rows: int
    rows_of_other_runs: int
    target: SiloTargetPart
    adversaries: dict[str, AdversaryPart]


class AccountantPart(Part):
    """Validity of an accountant."""

    name: str
    title: str
    bound: bool
    trust: str


def silo_part(silo: SiloAccounting, run: RunRecord, accounts: Accounts) -> dict[str, Any]:
    public = run.silos.get(silo.name)
    public = public if isinstance(public, dict) else {}
    return {
        "silo": silo.name,
        "examples": public.get("examples"),
        "left": public.get("left"),
        "rounds": silo.rounds,
        "trainings": [
            {"sampling_rate": rate, "noise_multiplier": noise, "steps": steps}
            for rate, noise, steps in silo.trainings
        ],
        "rows": silo.rows,
        "rows_of_other_runs": silo.other_rows,
        "target": _target(silo, run, accounts),
        "adversaries": {
            adversary: {
                "headline": asdict(silo.headline(adversary)),
                "figures": [asdict(figure) for figure in figures],
                "held": asdict(silo.held[adversary]) if adversary in silo.held else None,
                "reasons": silo.reasons[adversary],
            }
            for adversary, figures in silo.figures.items()
        },
    }


def _target(silo: SiloAccounting, run: RunRecord, accounts: Accounts) -> dict[str, Any]:
    """Return the targets of a silo's settings, and its epsilon at its own delta if that differs."""
    if run.settings is None:
        return {"epsilon": None, "run_epsilon": None, "delta": None, "spent": None}
    privacy = run.settings.for_silo(silo.name).privacy
    spent = None
    guarded_from = protected_from(run.settings)
    against = guarded_from if guarded_from.sees_sums else SERVER
    known = run.whole(silo.name) and not silo.reasons.get(against, ["no row"])
    if privacy.delta != accounts.delta and known:
        parties = (silo.name, accounting.EVERYBODY)
        rows = [row for row in run.entries if row.party in parties]
        name = silo.headline(against).accountant
        own = Accounts(accounts.relation, privacy.delta)
        figure = guarded(
            f"epsilon of {silo.name} at its own delta",
            run.problems,
            lambda: own.figure(name, composed(rows, against)) if name != "none" else None,
            None,
        )
        spent = None if figure is None else figure.epsilon
    found = {key: getattr(privacy, key) for key in ("epsilon", "run_epsilon", "delta")}
    return {**found, "spent": spent}


def accountants_part(
    relation: Relation, accounted: Sequence[SiloAccounting] = ()
) -> list[dict[str, Any]]:
    """Return what each accountant may be trusted for; of an approximation, whether it is below the headline here."""
    table = []
    for name, title in accounting.ACCOUNTANTS:
        try:
            accountant = make_accountant(name, relation)
        except (ValueError, KeyError):
            continue
        row = {"name": name, "title": title, "bound": bool(accountant.is_bound)}
        trust = str(getattr(accountant, "trust", ""))
        if not accountant.is_bound:
            trust += _below(name, accounted)
        table.append(row | {"trust": trust})
    return table


def _below(name: str, accounted: Sequence[SiloAccounting]) -> str:
    """Say where an approximation is clearly below the bound of the headline; empty where it nowhere is."""
    found = []
    for silo in accounted:
        for adversary, figures in silo.figures.items():
            own = next((f.epsilon for f in figures if f.accountant == name), None)
            bound = silo.headline(adversary).epsilon
            if own is not None and bound is not None and own < CLEARLY * bound < math.inf:
                found.append((own / bound, own, bound, silo.name, adversary))
    if not found:
        return ""
    _, own, bound, silo_name, adversary = min(found)
    return (
        f"; here it under-reports: {own:.3f} in place of {shown(bound)} (silo {silo_name}, against the "
        f"{adversary})"
    )


def page_values(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for the markup beyond the report's content."""
    rows = _rows(content)
    settings = content["settings"] or {}
    return {
        "adversaries": _adversaries(content),
        "columns": _columns(content),
        "rows": rows,
        "own_targets": bool((settings.get("privacy") or {}).get("silos")),
        "named": content["run"]["silos"],
        "explained": _explained(rows),
    }


def _rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per silo and adversary; adversaries with the same figures share one."""
    rows = []
    for silo in content["silos"]:
        groups: dict[str, list[str]] = {}
        for adversary, found in silo["adversaries"].items():
            key = json.dumps(found, sort_keys=True, default=str)
            groups.setdefault(key, []).append(adversary)
        for names in groups.values():
            found = silo["adversaries"][names[0]]
            rows.append(
                {
                    "silo": silo,
                    "adversaries": names,
                    "figures": {figure["accountant"]: figure for figure in found["figures"]},
                    "reasons": found["reasons"],
                    "held": None if found["reasons"] else found.get("held"),
                }
            )
    return rows


def _explained(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return each reason for no guarantee once, with the silos that it concerns."""
    silos: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for reason in row["reasons"]:
            key = (", ".join(row["adversaries"]), reason)
            silos.setdefault(key, []).append(row["silo"]["silo"])
    everyone = {row["silo"]["silo"] for row in rows}
    return [
        {
            "adversaries": adversaries,
            "reason": reason,
            "silos": "All silos" if set(names) == everyone else ", ".join(dict.fromkeys(names)),
        }
        for (adversaries, reason), names in silos.items()
    ]


def _columns(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the accountants that gave at least one number; PLD and RDP always."""
    used = {
        figure["accountant"]
        for silo in content["silos"]
        for found in silo["adversaries"].values()
        for figure in found["figures"]
        if figure["epsilon"] is not None
    } | {"pld", "rdp"}
    return [row for row in content["accountants"] if row["name"] in used]


def _adversaries(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {name for silo in content["silos"] for name in silo["adversaries"]}
    ordered = sorted((Adversary(name) for name in names), key=lambda a: a.strength)
    return [(str(name), name.describe()) for name in ordered]


MARKUP = """\
{% macro steps(trainings, key, pattern) %}
{% for t in trainings %}<span>{{ pattern | format(t[key]) }}{% if not loop.last %}<br>{% endif %}</span>{% else %}–{% endfor %}
{% endmacro %}
<h2>What was released of each silo's data</h2>
<p>{% if report.vouching is not none %}Every number is what a silo vouches for, by a signed extract of its own ledger, or what the events in the
extract cost, whichever is larger; over everything that its ledger holds about its data{% else %}Every number is computed from the privacy ledger, over everything that the ledger holds about a
silo's data{% endif %}{% if ledger.runs | length > 1 %} ({{ ledger.runs | length }} runs){% endif %}, as far as it was released
so far: a guarantee only if the stopping point did not depend on the outputs. Where a run's plan, or a budget, is what holds, it stands below the figure. The unit is
<strong>{{ g.unit }}</strong>, the neighbouring relation <strong>{{ g.relation }}</strong>, delta is
<strong>{{ "%g" | format(g.delta) }}</strong>. Every printed epsilon and mu is rounded up; the exact
values are in <code>report.json</code>.
{% for name, words in adversaries %}<strong>{{ name }}</strong> is {{ words }}{{ "; " if not loop.last else "." }}{% endfor %}</p>
{% if g.level == "unknown" and rows %}
<p><strong class="bad">Not a guarantee:</strong> the table says what the events in the ledger cost if they
are what was done. Nothing proves that they are; see the first line.</p>
{% endif %}
{% if rows %}
<div class="scroll" tabindex="0" role="region" aria-label="Epsilon of each silo">
<table class="stack" id="spent">
<caption>Epsilon of each silo, by adversary and accountant, at delta = {{ "%g" | format(g.delta) }}.</caption>
<thead><tr>
  <th scope="col">Silo</th>
  <th scope="col">Adversary</th>
  {% for column in columns %}
  <th scope="col" class="num">{{ column.title }}<small>{{ "bound" if column.bound else "approximation, no bound" }}{{ ", headline" if column.name == g.accountant }}</small></th>
  {% endfor %}
  {% if own_targets %}
  <th scope="col" class="num">Target</th>
  {% endif %}
  <th scope="col" class="num">Examples</th>
  <th scope="col" class="num">Sampling rate</th>
  <th scope="col" class="num">Noise multiplier</th>
  <th scope="col" class="num">Steps</th>
</tr></thead>
<tbody>
{% for row in rows %}
<tr>
  <th scope="row">{{ row.silo.silo }}{% if row.silo.left %} <small class="soft">left: {{ row.silo.left }}</small>{% endif %}{% if row.silo.rows_of_other_runs %} <small class="soft">{{ row.silo.rows_of_other_runs }} rows of other runs counted in</small>{% endif %}</th>
  <td data-label="adversary"><span>{{ row.adversaries | join(", ") }}</span></td>
  {% for column in columns %}
  {% set figure = row.figures.get(column.name) %}
  <td data-label="{{ column.title }}{{ "" if column.bound else " (no bound)" }}" class="num{{ " lead" if column.name == g.accountant }}{{ " bad" if row.reasons }}{{ "" if column.bound else " approximation" }}"><span>{% if figure is none or figure.epsilon is none %}n/a{% else %}{{ "" if column.bound or row.reasons else "≈ " }}{{ figure.epsilon | epsilon }}{% if figure.mu is not none %} <small>mu {{ figure.mu | mu }}</small>{% endif %}{% if row.held and column.name == "pld" %} <small>{{ "under a condition" if row.held.epsilon is none else ("by plan " if row.held.accountant == "plan" else "by the filter ") ~ (row.held.epsilon | epsilon) }}</small>{% endif %}{% endif %}</span></td>
  {% endfor %}
  {% if own_targets %}
  <td data-label="target" class="num"><span>{{ row.silo.target.epsilon | number }}{% if row.silo.target.run_epsilon is not none %} <small>{{ row.silo.target.run_epsilon | number }} in this run</small>{% endif %}{% if row.silo.target.delta != g.delta %} <small>at delta {{ "%g" | format(row.silo.target.delta) }}{% if row.silo.target.spent is not none %}: spent {{ row.silo.target.spent | epsilon }} against {{ g.adversary if g.adversary.startswith("sum-only") else "the server" }}{% endif %}</small>{% endif %}</span></td>
  {% endif %}
  <td data-label="examples" class="num"><span>{{ row.silo.examples | number }}</span></td>
  <td data-label="sampling rate" class="num"><span>{{ steps(row.silo.trainings, "sampling_rate", "%.4g") }}</span></td>
  <td data-label="noise multiplier" class="num"><span>{{ steps(row.silo.trainings, "noise_multiplier", "%.4f") }}</span></td>
  <td data-label="steps" class="num"><span>{{ steps(row.silo.trainings, "steps", "%d") }}</span></td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% elif ledger.problems %}
<p>No epsilon can be stated: {{ ledger.problems | join("; ") }}.{% if named %} Silos of the run, as <code>silos.json</code> names them: {{ named | join(", ") }}.{% endif %}</p>
{% else %}
<p>The ledger holds nothing about this run.</p>
{% endif %}

{% if explained %}
<div class="notice bad"><strong>No guarantee (epsilon ∞):</strong>
<ul>
{% for item in explained %}
<li>{{ item.silos }}, against {{ item.adversaries }}: {{ item.reason }}</li>
{% endfor %}
</ul></div>
{% endif %}

<div class="scroll">
<table class="stack">
<caption>How far each accountant may be trusted.</caption>
<thead><tr><th scope="col">Accountant</th><th scope="col">Kind</th><th scope="col">Trust</th></tr></thead>
<tbody>
{% for column in report.accountants %}
<tr><th scope="row">{{ column.title }}</th><td data-label="kind"><span>{{ "upper bound" if column.bound else "approximation, never a bound" }}</span></td><td data-label="trust"><span>{{ column.trust }}{% if column not in columns %} (not applicable to these events){% endif %}</span></td></tr>
{% endfor %}
</tbody>
</table>
</div>
"""
