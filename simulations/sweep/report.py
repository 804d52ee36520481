"""A sweep's results as files: ``results.json``, ``results.md``, ``results.html`` and the figures as SVG
within the page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fedllm.files.durable import json_bytes, write_bytes, write_text
from fedllm.report.page.style import STYLE
from simulations.sweep import words
from simulations.sweep.figures import gap_bars, over_epsilon
from simulations.sweep.plan import Sweep

JSON, MARKDOWN, HTML = "results.json", "results.md", "results.html"

_PAGE = """\
{% macro listed(items, tone, title, id) %}
{% if items %}
<div class="notice {{ tone }}" id="{{ id }}"><strong>{{ title }}</strong>
<ul>{% for item in items %}<li>{{ item }}</li>{% endfor %}</ul></div>
{% endif %}
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sweep: {{ content.name }}</title>
<link rel="icon" href="data:,">
<style>
{{ style }}</style>
</head>
<body>
<main>
<h1>Sweep: {{ content.name }}</h1>
<p class="soft">{{ content.done }} of {{ content.of }} runs done{% if content.baseline %}; baseline: {{ content.baseline }}{% endif %}{% if content.reference %}; reference: {{ content.reference }}{% endif %}.
Made {{ content.made }} by {{ content.made_by }} from <code>{{ content.file }}</code>.</p>
{{ listed(broken, "bad", "Arms without a guarantee:", "broken") }}
{{ listed(unfinished, "warn", "Runs without a result:", "unfinished") }}
{{ listed(shortened, "warn", "Runs that ended before their last round:", "shortened") }}
{% for heading, rows in blocks %}
<h2>{{ heading }}</h2>
<div class="scroll" tabindex="0" role="region" aria-label="{{ heading }}">
<table class="sweep">
<thead><tr>{% for key, title in columns %}<th scope="col"{% if key not in ("arm", "privacy") %} class="num"{% endif %}>{{ title }}</th>{% endfor %}</tr></thead>
<tbody>
{% for texts, row in rows %}
<tr>{% for key, title in columns %}{% set main, detail = texts[key] %}{% if key == "arm" %}<th scope="row">{{ main }}</th>{% else %}<td class="{{ ("bad" if row.bad else "") if key == "privacy" else "num" }}">{{ main }}{% if detail %} <small>{{ detail }}</small>{% endif %}</td>{% endif %}{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endfor %}
<div class="figures">
{% for figure in figures %}
<figure id="figure-{{ figure.id }}">{{ figure.svg }}
<figcaption>{{ figure.caption }}</figcaption></figure>
{% endfor %}
</div>
<h2>How to read this</h2>
{% for sentence in meaning + explanations %}<p>{{ sentence }}</p>
{% endfor %}
<h2>Runs</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Runs">
<table>
<thead><tr><th scope="col">Run</th><th scope="col">State</th><th scope="col" class="num">Rounds</th><th scope="col" class="num">{{ content.metric }}</th><th scope="col">Folder</th></tr></thead>
<tbody>
{% for trial in content.trials %}
<tr><th scope="row">{{ trial.title }}</th><td>{{ trial.status }}</td><td class="num">{{ trial.round }} of {{ trial.rounds }}</td><td class="num">{{ number(trial.metrics.get(content.metric), content.metric) }}</td><td><code>{{ trial.run }}</code></td></tr>
{% endfor %}
</tbody>
</table>
</div>
</main>
<footer>{{ content.made_by }}. This page loads nothing from elsewhere. Each run folder has a report of its own.
Data: <code>results.json</code>.</footer>
</body>
</html>
"""


def write_results(sweep: Sweep, content: Mapping[str, Any]) -> Path:
    """Write the three files into the sweep's folder, each whole or not at all; path of the page."""
    write_bytes(sweep.folder / JSON, json_bytes(dict(content)))
    write_text(sweep.folder / MARKDOWN, markdown(content))
    write_text(sweep.folder / HTML, html(content))
    return sweep.folder / HTML


def markdown(content: Mapping[str, Any]) -> str:
    """Return the table and its explanations as Markdown."""
    parts = [f"# Sweep: {content['name']}", f"{content['done']} of {content['of']} runs done."]
    for title, items in (
        ("Arms without a guarantee:", words.broken(content["table"])),
        ("Runs without a result:", words.unfinished(content)),
        ("Runs that ended before their last round:", words.shortened(content)),
    ):
        if items:
            parts.append("\n".join([title, "", *(f"- {_cell(item)}" for item in items)]))
    for heading, rows in words.blocks(content["table"]):
        lines = ["| " + " | ".join(title for _, title in words.COLUMNS) + " |"]
        lines.append("| --- |" + " ---: |" * (len(words.COLUMNS) - 2) + " --- |")
        for row in rows:
            found = words.row_texts(row, content["metric"])
            texts = {key: " ".join(filter(None, parts)) for key, parts in found.items()}
            if words.breaks_guarantee(row):
                texts["privacy"] = f"**{texts['privacy']}**"
            lines.append("| " + " | ".join(_cell(texts[key]) for key, _ in words.COLUMNS) + " |")
        parts += [f"## {_cell(heading)}", "\n".join(lines)]
    parts += [*words.epsilon_meaning(content["table"]), *words.explanations(content)]
    return "\n\n".join(parts) + "\n"


def html(content: Mapping[str, Any]) -> str:
    """Return the page: tables, figures, explanations; nothing is loaded from elsewhere."""
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({HTML: _PAGE}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    metric = content["metric"]
    blocks = [
        (
            heading,
            [(words.row_texts(row, metric), {"bad": words.breaks_guarantee(row)}) for row in rows],
        )
        for heading, rows in words.blocks(content["table"])
    ]
    return environment.get_template(HTML).render(
        content=content,
        style=Markup(_style(content)),
        blocks=blocks,
        columns=words.COLUMNS,
        figures=figures(content),
        broken=words.broken(content["table"]),
        unfinished=words.unfinished(content),
        shortened=words.shortened(content),
        meaning=words.epsilon_meaning(content["table"]),
        explanations=words.explanations(content),
        number=words.number,
    )


def figures(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the drawings of each data set that has something to draw: ``id``, ``svg``, ``caption``."""
    found = []
    for place, dataset in enumerate(content["datasets"]):
        rows = [row for row in content["table"] if row["dataset"] == dataset]
        where = f" on {dataset}" if dataset else ""
        drawn = over_epsilon(rows, content["arms"], content["metric"], f"metric{place}")
        if drawn is not None:
            caption = (
                f"{content['metric']}{where} over epsilon: mean, and one standard deviation over seeds. "
                "Dashed: trained without privacy. Crosses: arms without a guarantee."
            )
            found.append({"id": f"metric{place}", "svg": Markup(drawn), "caption": caption})
        drawn = gap_bars(rows, content["metric"], f"gap{place}")
        if drawn is not None:
            caption = (
                f"Share of the gap between {content['baseline']} (0) and {content['reference']} "
                f"(100){where} that each arm closes. Hatched: arms without a guarantee."
            )
            found.append({"id": f"gap{place}", "svg": Markup(drawn), "caption": caption})
    return found


def _style(content: Mapping[str, Any]) -> str:
    """Return the reports' style sheet, with what stands at the edges of printed pages."""
    edges = {
        "header": f"Sweep: {content['name']}",
        "moment": content["made"],
        "run": content["file"],
    }
    text = STYLE
    for name, value in edges.items():
        text = text.replace(f"%({name})s", re.sub(r"[^\w .:,+-]", "_", value)[:80])
    return text.replace('"Run ', '"Sweep ')


def _cell(text: str) -> str:
    """Return the text that stays within one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
