"""Report section on the training: evaluations, rounds, traffic and failures, from ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedllm.report.sections.perturbation import perturbation
from fedllm.settings.experiment import Settings

METRICS: tuple[tuple[str, str, str], ...] = (
    ("accuracy", "Accuracy", "{:.1%}"),
    ("micro_f1", "Micro-F1", "{:.3f}"),
    ("macro_f1", "Macro-F1", "{:.3f}"),
    ("loss", "Loss", "{:.4f}"),
    ("perplexity", "Perplexity", "{:.2f}"),
    ("bleu", "BLEU", "{:.2f}"),
    ("rouge_l", "ROUGE-L", "{:.3f}"),
    ("mse", "Mean squared error", "{:.4g}"),
    ("mae", "Mean absolute error", "{:.4g}"),
    ("pearson", "Pearson", "{:.3f}"),
    ("spearman", "Spearman", "{:.3f}"),
    ("tag_accuracy", "Tag accuracy", "{:.1%}"),
    ("entity_precision", "Entity precision", "{:.3f}"),
    ("entity_recall", "Entity recall", "{:.3f}"),
    ("entity_f1", "Entity F1", "{:.3f}"),
    ("examples", "Examples", "{:.0f}"),
)
"""Key in a record, title, and how a value is printed."""


def participants_are_secret(settings: Settings | None) -> bool:
    """Return True if amplification rests on no one knowing which silos took part in a round.

    Then numbers that tell how many silos answered (replies, bytes, failures) are not shown; nor where
    the settings are lost (None), and nothing tells.
    """
    if settings is None:
        return True
    privacy, server = settings.privacy, settings.server
    return (
        privacy.mode == "dp"
        and privacy.unit == "client"
        and privacy.noise_by == "server"
        and server.sampling == "poisson"
        and server.fraction < 1
    )


def summarise(records: Sequence[Mapping[str, Any]], settings: Settings | None) -> dict[str, Any]:
    """Summarise evaluations in order, one row a round, totals, counted failures, and the perturbation of weights.

    Where participation must stay secret, times, traffic and replies are left out and ``withheld`` says so.
    """
    rounds = [record for record in records if record["kind"] == "round"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    withheld = participants_are_secret(settings)
    summary: dict[str, Any] = {
        "evaluations": [_evaluation(record) for record in evaluations],
        "final": {where: _evaluation(last) for where, last in _last(evaluations, "where").items()},
        "first": {
            where: _evaluation(first)
            for where, first in _last(reversed(evaluations), "where").items()
        },
        "finished_rounds": max((record["round"] for record in rounds), default=0),
        # The time of a round depends on how many silos take part in it, and on what they draw.
        "seconds": None
        if withheld
        else math.fsum(number(record.get("seconds")) for record in rounds),
        "withheld": withheld,
        "perturbation": perturbation(settings),
        # Post-processing of noisy counts: shown anyone who took part.
        "clipping": [
            {
                "round": record["round"],
                "clip": number(record["clip"]),
                "below": number(record["below_clip"]) if "below_clip" in record else None,
            }
            for record in rounds
            if "clip" in record
        ],
    }
    if withheld:
        return summary
    summary["rounds"] = [
        {
            "round": record["round"],
            "seconds": number(record.get("seconds")),
            "replied": int(number(record.get("replied"))),
            "failed": len(_items(record, "failed")),
            "refused": len(_items(record, "refused")),
            "left": len(_items(record, "left")),
            "bytes_down": int(number(record.get("bytes_down"))),
            "bytes_up": int(number(record.get("bytes_up"))),
        }
        for record in rounds
    ]
    summary["bytes_down"] = int(sum(number(record.get("bytes_down")) for record in rounds))
    summary["bytes_up"] = int(sum(number(record.get("bytes_up")) for record in rounds))
    summary["replies"] = int(sum(number(record.get("replied")) for record in rounds))
    asked = [record for record in records if record["kind"] == "replies"]
    summary["incidents"] = _incidents([*asked, *rounds])
    return summary


def metric_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (title, printed value) of the metrics that a record holds."""
    return [
        (title, pattern.format(evaluation[key]))
        for key, title, pattern in METRICS
        if isinstance(evaluation.get(key), int | float)
    ]


def page_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for the markup beyond the summary: final values, and metrics with a column."""
    return {
        "final": {where: metric_rows(found) for where, found in summary["final"].items()},
        "metrics": [
            (key, title, pattern)
            for key, title, pattern in METRICS
            if any(key in record for record in summary["evaluations"])
        ],
    }


def _evaluation(record: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("round", "where", *(key for key, _, _ in METRICS))
    found = {key: record[key] for key in keys if key in record}
    metrics = {key for key, _, _ in METRICS}
    return {k: v for k, v in found.items() if k not in metrics or isinstance(v, int | float)}


def _incidents(rounds: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Count failed, refused and departed silos by reason; outside of training, with the request."""
    counts: Counter[tuple[str, str, str]] = Counter()
    last: dict[tuple[str, str, str], int] = {}
    for record in rounds:
        for kind in ("failed", "refused", "left"):
            for item in _items(record, kind):
                what = f"{record['what']}: " if "what" in record else ""
                key = (kind, str(item.get("silo")), f"{what}{item.get('reason')}")
                counts[key] += 1
                last[key] = record["round"]
    return [
        {"kind": kind, "silo": silo, "reason": reason, "times": times, "last_round": last[key]}
        for key, times in counts.items()
        for kind, silo, reason in [key]
    ]


def _items(record: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = record.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _last(records: Iterable[Mapping[str, Any]], key: str) -> dict[str, Mapping[str, Any]]:
    return {str(record.get(key, "server")): record for record in records}


def number(value: Any) -> float:
    """Return a value of a record as a number; 0 for what is none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


MARKUP = """\
{% if clipping %}
<p>The clipping norm followed the {{ "%g" | format(100 * report.settings.clipping.quantile) if report.settings else "" }} % quantile of the norms, by noisy counts that the
ledger holds with each round: {{ "%.4g" | format(training.clipping[0].clip) }} in the first round, {{ "%.4g" | format(training.clipping[-1].clip) }} in the last.</p>
<div class="figures"><figure id="figure-clipping">{{ clipping }}
<figcaption>Clipping norm by round.</figcaption></figure></div>
<details><summary>Clipping norm, and noisy share of norms at most as large, by round</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Clipping norm by round"><table id="clipping">
<thead><tr><th scope="col" class="num">Round</th><th scope="col" class="num">Clipping norm</th><th scope="col" class="num">Share below, noisy</th></tr></thead><tbody>
{% for row in training.clipping %}<tr><th scope="row" class="num">{{ row.round }}</th><td class="num">{{ "%.4g" | format(row.clip) }}</td><td class="num">{{ "%.3f" | format(row.below) if row.below is not none else "–" }}</td></tr>
{% endfor %}</tbody></table></div></details>
{% endif %}
{% if training.withheld %}
<p>{{ training.finished_rounds }} rounds. Times, replies, traffic and failures
are withheld: {{ "the settings cannot be read, and it may be that " if report.settings is none }}the guarantee uses that nobody knows which silos took part in a round.</p>
{% else %}
<p>{{ training.finished_rounds }} rounds in {{ training.seconds | seconds }}; {{ training.replies | number }} updates received;
{{ training.bytes_down | bytes }} sent to the silos, {{ training.bytes_up | bytes }} received.</p>
{% if traffic %}<figure id="figure-traffic">{{ traffic }}<figcaption>Bytes of trained tensors by round.</figcaption></figure>{% endif %}
{% if training.incidents %}
<div class="scroll">
<table class="stack">
<caption>Replies that failed or were refused, and silos that left.</caption>
<thead><tr><th scope="col">Silo</th><th scope="col">What</th><th scope="col">Reason</th><th scope="col" class="num">Times</th><th scope="col" class="num">Last in round</th></tr></thead>
<tbody>
{% for item in training.incidents %}
<tr><th scope="row">{{ item.silo }}</th><td data-label="what"><span>{{ item.kind }}</span></td><td data-label="reason"><span>{{ item.reason }}</span></td><td data-label="times" class="num"><span>{{ item.times }}</span></td><td data-label="last in round" class="num"><span>{{ item.last_round }}</span></td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
<p>No reply failed or was refused; no silo left.</p>
{% endif %}
{% endif %}
"""

QUALITY = """\
<h2>Quality of the model</h2>
{% if losses or scores %}
<div class="figures">
{% if losses %}<figure id="figure-loss">{{ losses }}
<figcaption>Loss by round, on examples that no silo trains on.</figcaption></figure>{% endif %}
{% if scores %}<figure id="figure-scores">{{ scores }}
<figcaption>Accuracy and macro-F1 by round, on the same examples.</figcaption></figure>{% endif %}
</div>
{% endif %}
{% if training.evaluations %}
<div class="scroll" tabindex="0" role="region" aria-label="Evaluations">
<table>
<caption>Evaluations.</caption>
<thead><tr><th scope="col" class="num">Round</th><th scope="col">By</th>{% for key, title, pattern in metrics %}<th scope="col" class="num">{{ title }}</th>{% endfor %}</tr></thead>
<tbody>
{% for record in training.evaluations %}
<tr><th scope="row" class="num">{{ record.round }}</th><td>{{ record.where }}</td>{% for key, title, pattern in metrics %}<td class="num">{{ pattern.format(record[key]) if record[key] is defined and record[key] is number else "–" }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
<p>No evaluation is recorded.</p>
{% endif %}
"""
