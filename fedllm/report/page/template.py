"""The report's page as a Jinja2 template, which includes the markup of each section.

Templates are text in Python, since Flower's app bundles carry no .html.
"""

from __future__ import annotations

PAGE = """\
{% macro titled(items) %}
<dl class="items">
{% for item in items %}
  <dt>{{ item.title }}</dt>
  <dd>{{ item.text }}</dd>
{% endfor %}
</dl>
{% endmacro %}
{% macro pairs(caption, mapping) %}
<table class="pairs">
  <caption>{{ caption }}</caption>
  <tbody>
  {% for key, value in mapping.items() %}
    <tr><th scope="row">{{ key }}</th><td>{{ value | value }}</td></tr>
  {% endfor %}
  </tbody>
</table>
{% endmacro %}
{% macro measured(attacks) %}
<ul>{% for row in attacks %}<li>{{ row.attack }}: AUC {{ "%.3f" | format(row.auc) }}, 95% confidence interval {{ "%.3f" | format(row.low) }} to {{ "%.3f" | format(row.high) }}, over {{ row.runs }} {{ "run" if row.runs == 1 else "runs" }} (0.5 is guessing).</li>{% endfor %}</ul>
<p>What these attacks achieved; another attack may achieve more. A measurement is no guarantee.{% if attacks[0].label %} It is {{ attacks[0].label }}.{% endif %}</p>
{% endmacro %}
{% set g = report.guarantee %}
{% set taught = report.teacher %}
{% set unguarded = taught and not taught.guarantee %}
{% set run = report.run %}
{% set training = report.training %}
{% set ledger = report.ledger %}
{% set curves = report.privacy_curves %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Privacy report: {{ run.name }}</title>
<link rel="icon" href="data:,">
<style>
{{ style }}</style>
</head>
<body>
<main>
<p class="guarantee {{ tone }}" id="guarantee">{{ g.sentence }}</p>
{% if report.strength %}
<p class="guarantee {{ tone }}" id="strength">{{ report.strength.words }}</p>
{% endif %}
{% if report.evaluation_data %}
{% set own = report.evaluation_data %}
<div class="notice {{ "bad" if own.share else "soft" }}" id="server-texts"><strong>What the server has of the silos' texts:</strong>
{{ own.sentence }}</div>
{% endif %}

{% include "unguarded.html" %}
{% if report.problems %}
<div class="notice warn" id="problems"><strong>Missing or damaged in this run folder:</strong>
<ul>{% for problem in report.problems %}<li>{{ problem }}</li>{% endfor %}</ul></div>
{% endif %}
{% if report.warnings %}
<div class="notice warn" id="warnings"><strong>The run warned:</strong>
<ul>{% for text in report.warnings %}<li>{{ text }}</li>{% endfor %}</ul></div>
{% endif %}
{% if report.notes %}
<div class="notice warn" id="notes"><strong>Unfinished:</strong>
<ul>{% for note in report.notes %}<li>{{ note }}</li>{% endfor %}</ul></div>
{% endif %}

<h1>Privacy report: {{ run.name }}</h1>
<p class="soft">Run <code>{{ run.run_id or "not known" }}</code>, started {{ run.created | moment }}, {{ run.status }}
after {{ run.round }}{% if run.rounds is not none %} of {{ run.rounds }}{% endif %} rounds{% if run.message %} ({{ run.message }}){% endif %}.
Report of {{ report.made | moment }} by {{ report.made_by }}.</p>
{{ signer }}

<dl class="tiles">
  <div><dt>epsilon{% if g.level == "outsider-only" %}, outsiders only{% elif g.level == "conditional" %}, seed unknown{% elif g.level == "if-fixed" %}, conditional{% elif g.level == "sum-only" %}, sums only{% elif g.level == "not-as-asked" %}, by proof{% endif %}</dt><dd>{{ "none stated" if g.level == "unknown" else g.epsilon | epsilon }}</dd></div>
  <div><dt>target epsilon</dt><dd>{{ report.target.epsilon | number if report.target.epsilon is not none and report.settings.privacy.mode == "dp" else "none" }}</dd></div>
  <div><dt>delta</dt><dd>{{ "%g" | format(g.delta) }}</dd></div>
  <div><dt>privacy unit</dt><dd>{{ g.unit }}</dd></div>
  <div><dt>silos</dt><dd>{{ report.silos | length }}</dd></div>
{% for where, rows in final.items() %}{% if rows %}
  <div><dt>{{ rows[0][0] | lower }}, by the {{ where }}</dt><dd>{{ rows[0][1] }}</dd></div>
{% endif %}{% endfor %}
</dl>

{% if meaning %}
<h2>In plain words</h2>
<p id="meaning">{{ meaning }}</p>
<p>The words in use here (unit, relation, adversary, epsilon, delta, accountant) are explained under
<a href="#glossary">Words</a>.</p>
{% endif %}

{% include "spent.html" %}

{% include "copies.html" %}

{% include "curves.html" %}

{% include "released.html" %}

{% include "encoding.html" %}

{% include "layers.html" %}

{% include "lmo.html" %}

{% include "black-box.html" %}

<h2>What the guarantee assumes</h2>
{{ titled(report.assumptions) }}

<h2>What is not covered</h2>
{% if report.not_covered %}{{ titled(report.not_covered) }}{% else %}<p>Not known: the settings cannot be read.</p>{% endif %}

{% include "ledger.html" %}

{% include "quality.html" %}

{% include "measured.html" %}

<h2>Course of the run</h2>
{% include "teacher.html" %}
{% include "perturbation.html" %}
{% include "training.html" %}

<h2>Settings</h2>
{% if report.settings is none %}
<p>Not known: <code>settings.toml</code> cannot be read.</p>
{% else %}
<div class="columns">
{{ pairs("Experiment", top) }}
{% for name, section in sections.items() %}
{{ pairs(name, section) }}
{% endfor %}
</div>
{% endif %}

<h2>Environment</h2>
{% if machine %}
<div class="columns">
{{ pairs("Machine of the server", machine) }}
{{ pairs("Packages", packages) }}
</div>
{% else %}
<p>Not known: <code>environment.json</code> cannot be read.</p>
{% endif %}

<h2>How to reproduce and check this report</h2>
<p>In the folder that holds the run folder <code>{{ run.folder }}</code>, with fedllm installed:</p>
<ol>
{% for step in report.reproduce %}
<li><strong>{{ step.title }}</strong> {{ step.text }}
<pre><code>{{ step.command }}</code></pre></li>
{% endfor %}
</ol>

<h2 id="glossary">Words</h2>
{{ titled(glossary) }}

<section class="signoff" aria-labelledby="sign-off">
<h2 id="sign-off">Sign-off</h2>
<p>The first line of this report is signed for this run, {{ "this ledger" if report.vouching is none else "these extracts of the silos' ledgers" }} and this data:</p>
{% if report.vouching is none %}
{{ pairs("What is signed", {"run": run.run_id or "not known", "statement": g.sentence, "ledger, rows": ledger.rows, "ledger, last hash (SHA-256)": ledger.last_hash, "report.json (SHA-256)": digest}) }}
{% else %}
{{ pairs("What is signed", {"run": run.run_id or "not known", "statement": g.sentence, "extracts": report.vouching | map(attribute="silo") | list, "report.json (SHA-256)": digest}) }}
{% endif %}
<div class="sign">
  <div>Name</div><div>Role</div><div>Place and date</div><div>Signature</div>
</div>
</section>
</main>
<footer>{{ report.made_by }}. This page loads nothing from elsewhere. Data: <code>report.json</code>,
schema <code>{{ report.schema }}</code>.</footer>
</body>
</html>"""
