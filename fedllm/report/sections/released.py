"""The report's table of releases: what was released, by which mechanism."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent
from pydantic import Field

from fedllm.report.accounting import adversaries_in, composed_or_why, describe_event
from fedllm.report.schema_base import Part
from privacy.events.kinds import DiscreteGaussianSumDpEvent, ScalarNoiseDpEvent, VectorNoiseDpEvent
from privacy.guarantee import Adversary
from privacy.ledger.ledger import LedgerEntry


class ReleasePart(Part):
    """One kind of released quantity."""

    owner: Literal["this run", "other runs"]
    purpose: str
    mechanism: str
    parameters: dict[str, tuple[float, float]] = Field(
        description="Least and greatest value of each parameter over these uses."
    )
    seen_by: list[str]
    silos: int
    rows: int
    uses: int


def releases(entries: Sequence[LedgerEntry], run: str | None) -> list[dict[str, Any]]:
    """Return every kind of released quantity: purpose, adversary's event in words, silos and number."""
    adversaries = adversaries_in(entries)
    parties: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    counts: Counter[tuple[str, str, str]] = Counter()
    rows: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    found: dict[tuple[str, str, str], dict[str, set[float]]] = defaultdict(dict)
    for row in entries:
        owner = "this run" if row.run == run else "other runs"
        for adversary in adversaries:
            for event, count in composed_or_why([row], adversary)[0].items():
                mechanism = _mechanism(event)
                key = (owner, row.purpose, f"{adversary}\n{mechanism}")
                for name, value in _parameters(event).items():
                    found[key].setdefault(name, set()).add(value)
                parties[key].add(row.party)
                rows[key].add(row.id or 0)
                counts[key] += count
    merged: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for owner, purpose, seen in sorted(counts):
        who, mechanism = seen.split("\n", 1)
        merged[owner, purpose, mechanism].append(who)
    table = []
    for (owner, purpose, mechanism), seers in merged.items():
        key = (owner, purpose, f"{seers[0]}\n{mechanism}")
        table.append(
            {
                "owner": owner,
                "purpose": purpose,
                "mechanism": mechanism,
                "parameters": {
                    name: [min(values), max(values)] for name, values in found[key].items()
                },
                "seen_by": sorted(seers, key=lambda name: Adversary(name).strength),
                "silos": len(parties[key]),
                "rows": len(rows[key]),
                "uses": counts[key],
            }
        )
    return table


def _mechanism(event: DpEvent) -> str:
    """Describe an event like :func:`describe_event`, without the parameters that differ between silos."""
    if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):
        return f"Poisson sampling cut to {event.truncated_batch_size}, then Gaussian mechanism"
    if isinstance(event, dp.PoissonSampledDpEvent):
        return f"Poisson sampling, then {_mechanism(event.event)}"
    if isinstance(event, dp.GaussianDpEvent):
        return "Gaussian mechanism" if event.noise_multiplier > 0 else "no noise"
    if isinstance(event, DiscreteGaussianSumDpEvent):
        shares = f"{event.shares} shares" if event.shares > 1 else "one share"
        return f"integers with {shares} of discrete Gaussian noise"
    if isinstance(event, ScalarNoiseDpEvent | VectorNoiseDpEvent):
        what = "one number" if isinstance(event, ScalarNoiseDpEvent) else "a vector"
        return f"{what} with {event.family} noise"
    return describe_event(event)


def _parameters(event: DpEvent) -> dict[str, float]:
    """Return the parameters that :func:`_mechanism` leaves out, by name."""
    if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):
        return {
            "sampling rate": float(event.sampling_probability),
            "noise multiplier": float(event.noise_multiplier),
        }
    if isinstance(event, dp.PoissonSampledDpEvent):
        rate = float(event.sampling_probability)
        return {"sampling rate": rate} | _parameters(event.event)
    if isinstance(event, dp.GaussianDpEvent) and event.noise_multiplier > 0:
        return {"noise multiplier": float(event.noise_multiplier)}
    if isinstance(event, DiscreteGaussianSumDpEvent):
        return {"sigma of a share": event.sigma, "sensitivity": event.sensitivity}
    if isinstance(event, ScalarNoiseDpEvent | VectorNoiseDpEvent):
        return dict(event.parameters)
    return {}


MARKUP = """\
<h2>What was released, and by which mechanism</h2>
<div class="scroll">
<table class="stack" id="released">
<caption>Every use of private data in the ledger that an adversary sees something of, with its event.</caption>
<thead><tr><th scope="col">Purpose</th><th scope="col">Event (mechanism)</th><th scope="col">Seen so by</th><th scope="col" class="num">Silos</th><th scope="col" class="num">Ledger rows</th><th scope="col" class="num">Uses</th></tr></thead>
<tbody>
{% for row in report.releases %}
<tr><th scope="row">{{ row.purpose }} {% if row.owner != "this run" %}<small class="soft">{{ row.owner }}</small>{% endif %}</th><td data-label="event"><span>{{ row.mechanism }}{% for name, (low, high) in row.parameters.items() %}<small class="soft">{{ name }} {{ "%.4g" | format(low) }}{% if high > low %} to {{ "%.4g" | format(high) }}{% endif %}</small>{% endfor %}</span></td><td data-label="seen so by"><span>{{ row.seen_by | join(", ") }}</span></td><td data-label="silos" class="num"><span>{{ row.silos | number }}</span></td><td data-label="ledger rows" class="num"><span>{{ row.rows | number }}</span></td><td data-label="uses" class="num"><span>{{ row.uses | number }}</span></td></tr>
{% else %}
<tr><td colspan="6">Nothing is recorded.</td></tr>
{% endfor %}
</tbody>
</table>
</div>
"""
