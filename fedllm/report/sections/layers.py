"""The report's section on the choice of layers: scores, kept layers, and what the choice cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from fedllm.flatness.layer_choice import CHOICE, Choice, Step, read_choice
from fedllm.report.accounting import Accounts, SiloAccounting
from fedllm.report.record import RunRecord
from fedllm.report.schema_base import Part, Real
from fedllm.report.sections.encoding import MuPart, mu_by_purpose

PURPOSE = "layer-scores"


class LayerStepPart(Part):
    """One measurement of the layers' sharpness."""

    candidates: list[int] = Field(description="Layers of the adapter before it.")
    mean: list[Real] = Field(description="Score of each, as released: the mean over the silos.")
    noise_std: Real = Field(description="Of the privacy noise in each mean score.")
    dropped: list[int]
    margin: Real = Field(description="The lowest score kept minus the highest dropped.")
    silos: int = Field(description="That released scores; 0 where public text was measured.")
    seconds: float
    bytes: int


class LayerMuPart(Part):
    """This run's spending of one silo, the one with the largest mu, by purpose."""

    adversary: str
    silo: str
    scores: MuPart
    training: MuPart
    total: MuPart


class LayersPart(Part):
    """The choice of the layers that stay in the adapter. Null: not known, or not yet chosen."""

    form: Literal["public", "private", "private-top-k", "paper"]
    measure: Literal["ascent", "example-ascent", "random"]
    search: Literal["one-shot", "greedy"]
    radius: float
    round: int | None = Field(description="Rounds of training before the choice.")
    layers: list[int] | None = Field(description="Layers to choose from.")
    kept: list[int] | None
    steps: list[LayerStepPart]
    mu: list[LayerMuPart]


def layers(
    run: RunRecord, accounted: Sequence[SiloAccounting], accounts: Accounts
) -> dict[str, Any] | None:
    """Return the section; None if the run chooses no layers, or its settings are lost."""
    if run.settings is None or run.settings.layers.form == "none":
        return None
    chosen, told = run.settings.layers, _told(run)
    if (told is None or told.kept is None) and run.state["round"] > chosen.after:
        run.problems.append(f"{CHOICE} is missing or damaged: the kept layers are unknown")
    mu = []
    if chosen.asks_silos:
        purposes = (("scores", PURPOSE), ("training", "train"))
        mu = mu_by_purpose(run, accounted, accounts, purposes)
    return {
        "form": chosen.form,
        "measure": chosen.measure,
        "search": chosen.search,
        "radius": chosen.radius,
        "round": None if told is None else told.round,
        "layers": None if told is None else list(told.layers),
        "kept": None if told is None or told.kept is None else list(told.kept),
        "steps": [
            {
                "candidates": list(step.candidates),
                "mean": list(step.mean),
                "noise_std": step.noise_std,
                "dropped": list(step.dropped),
                "margin": _margin(step),
                "silos": len(step.sampling_rates),
                "seconds": step.seconds,
                "bytes": step.bytes_up + step.bytes_down,
            }
            for step in (() if told is None else told.steps)
        ],
        "mu": mu,
    }


def unrecorded_scores(run: RunRecord) -> list[str]:
    """Return silos whose scores chose the layers, and of which the ledger has too few rows."""
    told = _told(run)
    recorded = Counter(row.party for row in run.own if row.purpose == PURPOSE)
    used = Counter(silo for step in (told.steps if told else ()) for silo in step.sampling_rates)
    missing = sorted(silo for silo, count in used.items() if count > recorded[silo])
    if not missing:
        return []
    shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
    return [
        f"the layers were chosen by scores of which the ledger has no row, of {shown}: something was "
        "released without a record"
    ]


def _margin(step: Step) -> float:
    """Return the lowest score that was kept minus the highest that was dropped."""
    scores = dict(zip(step.candidates, step.mean, strict=True))
    dropped = [scores.pop(layer) for layer in step.dropped]
    return min(scores.values()) - max(dropped)


def _told(run: RunRecord) -> Choice | None:
    try:
        return read_choice(run.path)
    except (OSError, ValueError):
        return None


MARKUP = """\
{% if report.layers %}
{% set choice = report.layers %}
<h2>Layers</h2>
<p>{% if choice.kept is none %}The layers that stay in the adapter are not chosen yet{% else %}Of the layers {{ choice.layers | join(", ") }} only <strong>{{ choice.kept | join(", ") }}</strong> stay in the adapter, since round {{ choice.round }}{% endif %}:
a layer is kept where the loss without its part of the adapter is sharper (Privacy-Flat, level 2).
{% if choice.form == "public" %}The scores are of the server's public text, and use no silo's data.
{% elif choice.form == "private" %}The scores are relative to the mean over the layers, those of the silos, clipped and noisy: they are events of the ledger.
{% elif choice.form == "private-top-k" %}The scores count the silos' votes, each a noisy choice: they are events of the ledger.
{% else %}The scores are those of the silos as they are: <strong class="bad">no guarantee</strong> for what they are made of.{% endif %}</p>
{% if choice.steps %}
<div class="scroll" tabindex="0" role="region" aria-label="Scores of the layers">
<table>
<caption>Scores ({{ "random directions" if choice.measure == "random" else "one ascent step" }}, radius {{ "%.3g" | format(choice.radius) }}{% if choice.search == "greedy" %}, one layer dropped at a time{% endif %}); the higher, the more the layer's part of the adapter flattens. The margin is from the lowest that was kept to the highest that was dropped: below the noise, the choice is mostly the noise's.</caption>
<thead><tr><th scope="col">Step</th>{% for layer in choice.layers %}<th scope="col" class="num">Layer {{ layer }}</th>{% endfor %}<th scope="col" class="num">Noise (std)</th><th scope="col" class="num">Margin</th><th scope="col">Dropped</th></tr></thead>
<tbody>
{% for step in choice.steps %}
<tr><th scope="row">{{ loop.index }}</th>{% for layer in choice.layers %}<td class="num">{% if layer in step.candidates %}{{ "%.4g" | format(step.mean[step.candidates.index(layer)]) }}{% else %}–{% endif %}</td>{% endfor %}<td class="num">{{ "%.2g" | format(step.noise_std) }}</td><td class="num">{{ "%.2g" | format(step.margin) }}</td><td>{{ step.dropped | join(", ") }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% if choice.mu %}
<div class="scroll" tabindex="0" role="region" aria-label="Scores and training apart">
<table>
<caption>mu of Gaussian differential privacy in this run, of the silo with the largest: choice of layers and training apart.</caption>
<thead><tr><th scope="col">Adversary</th><th scope="col">Silo</th><th scope="col">Choice of layers</th><th scope="col">Training</th><th scope="col">All</th></tr></thead>
<tbody>
{% for row in choice.mu %}
<tr><th scope="row">{{ row.adversary }}</th><td>{{ row.silo }}</td>{% for part in (row.scores, row.training, row.total) %}<td>{% if part.mu is none %}none{% else %}{{ part.mu | mu }} <small class="soft">{{ "exact" if part.exact else "dominating, a bound" }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% endif %}
"""
