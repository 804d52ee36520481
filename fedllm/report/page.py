"""The report's page as a Jinja2 template. Text in Python, since Flower's app bundles carry no .html."""

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
{% set g = report.guarantee %}
{% set run = report.run %}
{% set training = report.training %}
{% set ledger = report.ledger %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Privacy report: {{ run.name }}</title>
<link rel="icon" href="data:,">
<style>
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --grid: #d9dee3; --tint: #f5f7f9;
  --good: #116329; --good-tint: #e6f5ea; --warn: #7a4b00; --warn-tint: #fff4d6;
  --bad: #a40e16; --bad-tint: #ffe9e8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --ink: #e4e8ec; --soft: #a3acb6; --line: #39424c; --grid: #353d46; --tint: #1c2229;
    --good: #7ddc97; --good-tint: #13291b; --warn: #f0c25e; --warn-tint: #2e2510;
    --bad: #ff9d97; --bad-tint: #381717;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
}
h1 { font-size: 1.5rem; margin: 1.5rem 0 .25rem; line-height: 1.25; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 48rem; }
.soft, caption, figcaption, footer { color: var(--soft); }
.guarantee {
  margin: 0; max-width: none; padding: 1rem 1.25rem; border-left: .4rem solid; border-radius: .25rem;
  font-size: 1.1rem; line-height: 1.45; font-weight: 600; overflow-wrap: anywhere;
}
.good { color: var(--good); background: var(--good-tint); border-color: var(--good); }
.warn { color: var(--warn); background: var(--warn-tint); border-color: var(--warn); }
.bad { color: var(--bad); background: var(--bad-tint); border-color: var(--bad); }
strong.good, strong.warn, strong.bad { background: none; }
td.bad { background: none; border-color: var(--line); }
.notice { margin: .75rem 0; padding: .6rem 1rem; border-left: .3rem solid; border-radius: .25rem; max-width: none; }
.notice ul { margin: .25rem 0; padding-left: 1.25rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1rem 0; padding: 0; }
.tiles div { padding: .6rem .8rem; border: 1px solid var(--line); border-radius: .35rem; background: var(--tint); }
.tiles dt { font-size: .8rem; color: var(--soft); }
.tiles dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
caption { text-align: left; padding: 0 0 .4rem; font-size: .85rem; caption-side: top; }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; font-weight: 600; }
thead th.num { white-space: normal; }
thead th small, td small { display: block; font-weight: 400; color: var(--soft); white-space: normal; }
tbody th { font-weight: 600; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.lead { font-weight: 700; }
.pairs th { width: 34%; font-weight: 400; color: var(--soft); }
.pairs td { overflow-wrap: anywhere; }
.columns { columns: 2 24rem; column-gap: 2rem; }
.columns table { break-inside: avoid; margin: 0 0 1.25rem; }
.columns caption { font-weight: 600; color: var(--ink); }
.items dt { font-weight: 600; margin-top: .75rem; }
.items dd { margin: .1rem 0 0; max-width: 48rem; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 52rem; }
figcaption { font-size: .85rem; max-width: 48rem; }
code, .hash { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .85em; overflow-wrap: anywhere; }
.sign { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 2.5rem 2rem; margin-top: 3rem; }
.sign div { border-top: 1px solid var(--ink); padding-top: .25rem; font-size: .85rem; color: var(--soft); }
footer { margin-top: 2.5rem; font-size: .8rem; }
@media (max-width: 40rem) { body { padding: 1rem .8rem 2rem; } .guarantee { font-size: 1rem; padding: .8rem .9rem; } }
@media print {
  :root {
    --page: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb; --grid: #dddddd; --tint: #f7f7f7;
    --good: #116329; --good-tint: #e6f5ea; --warn: #7a4b00; --warn-tint: #fff4d6; --bad: #a40e16; --bad-tint: #ffe9e8;
  }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: .25rem .35rem; }
  h2 { break-after: avoid; }
  .columns { columns: 2; }
  figure, tr, .items dt, .guarantee, .sign { break-inside: avoid; }
  .items dt { break-after: avoid; }
  .guarantee, .tiles div, .notice { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
</style>
</head>
<body>
<main>
<p class="guarantee {{ tone }}" id="guarantee">{{ g.sentence }}</p>

<h1>Privacy report: {{ run.name }}</h1>
<p class="soft">Run <code>{{ run.run_id }}</code>, started {{ run.created | moment }}, {{ run.status }}
after {{ run.round }} of {{ run.rounds }} rounds{% if run.message %} ({{ run.message }}){% endif %}.
Report of {{ report.made | moment }} by {{ report.made_by }}.</p>

{% if report.problems %}
<div class="notice warn"><strong>Missing or damaged in this run folder:</strong>
<ul>{% for problem in report.problems %}<li>{{ problem }}</li>{% endfor %}</ul></div>
{% endif %}

<dl class="tiles">
  <div><dt>epsilon{% if g.level == "outsider-only" %}, outsiders only{% elif g.level == "conditional" %}, seed unknown{% endif %}</dt><dd>{{ g.epsilon | epsilon }}</dd></div>
  <div><dt>target epsilon</dt><dd>{{ report.target.epsilon | number if report.target.epsilon is not none and report.settings.privacy.mode == "dp" else "none" }}</dd></div>
  <div><dt>delta</dt><dd>{{ "%g" | format(g.delta) }}</dd></div>
  <div><dt>unit</dt><dd>{{ g.unit }}</dd></div>
  <div><dt>silos</dt><dd>{{ report.silos | length }}</dd></div>
{% for where, rows in final.items() %}{% if rows %}
  <div><dt>{{ rows[0][0] | lower }}, by the {{ where }}</dt><dd>{{ rows[0][1] }}</dd></div>
{% endif %}{% endfor %}
</dl>

<h2>What each silo has spent</h2>
<p>Every number is computed from the privacy ledger, over everything that the ledger holds about a
silo's data{% if ledger.runs | length > 1 %} ({{ ledger.runs | length }} runs){% endif %}. The unit is
<strong>{{ g.unit }}</strong>, the neighbouring relation <strong>{{ g.relation }}</strong>, delta is
<strong>{{ "%g" | format(g.delta) }}</strong>. Printed epsilons are rounded up.
{% for name, words in adversaries %}<strong>{{ name }}</strong> is {{ words }}{{ "; " if not loop.last else "." }}{% endfor %}</p>
{% if rows %}
<div class="scroll" tabindex="0" role="region" aria-label="Epsilon of each silo">
<table>
<caption>Epsilon of each silo, by adversary and accountant, at delta = {{ "%g" | format(g.delta) }}.</caption>
<thead><tr>
  <th scope="col">Silo</th>
  <th scope="col">Adversary</th>
  {% for column in columns %}
  <th scope="col" class="num">{{ column.title }}<small>{{ "bound" if column.bound else "approximation, no bound" }}{{ ", headline" if column.name == "pld" }}</small></th>
  {% endfor %}
  <th scope="col" class="num">Examples</th>
  <th scope="col" class="num">Sampling rate</th>
  <th scope="col" class="num">Noise multiplier</th>
  <th scope="col" class="num">Steps</th>
</tr></thead>
<tbody>
{% for row in rows %}
<tr>
  {% if row.first %}
  <th scope="row" rowspan="{{ row.span }}">{{ row.silo.silo }}{% if row.silo.left %}<small class="soft">left: {{ row.silo.left }}</small>{% endif %}{% if row.silo.rows_of_other_runs %}<small class="soft">{{ row.silo.rows_of_other_runs }} rows of other runs counted in</small>{% endif %}</th>
  {% endif %}
  <td>{{ row.adversaries | join(", ") }}</td>
  {% for column in columns %}
  {% set figure = row.figures.get(column.name) %}
  <td class="num{{ " lead" if column.name == "pld" }}{{ " bad" if row.reasons }}">{% if figure is none or figure.epsilon is none %}n/a{% else %}{{ figure.epsilon | epsilon }}{% if figure.mu is not none %}<small>mu {{ "%.4g" | format(figure.mu) }}</small>{% endif %}{% endif %}</td>
  {% endfor %}
  {% if row.first %}
  <td class="num" rowspan="{{ row.span }}">{{ row.silo.examples | number }}</td>
  <td class="num" rowspan="{{ row.span }}">{% for t in row.silo.trainings %}{{ "%.4g" | format(t.sampling_rate) }}{% if not loop.last %}<br>{% endif %}{% else %}–{% endfor %}</td>
  <td class="num" rowspan="{{ row.span }}">{% for t in row.silo.trainings %}{{ "%.4f" | format(t.noise_multiplier) }}{% if not loop.last %}<br>{% endif %}{% else %}–{% endfor %}</td>
  <td class="num" rowspan="{{ row.span }}">{% for t in row.silo.trainings %}{{ t.steps | number }}{% if not loop.last %}<br>{% endif %}{% else %}–{% endfor %}</td>
  {% endif %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
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
<table>
<caption>How far each accountant may be trusted.</caption>
<thead><tr><th scope="col">Accountant</th><th scope="col">Kind</th><th scope="col">Trust</th></tr></thead>
<tbody>
{% for column in report.accountants %}
<tr><th scope="row">{{ column.title }}</th><td>{{ "proven upper bound" if column.bound else "approximation, never a bound" }}</td><td>{{ column.trust }}{% if column not in columns %} (not applicable to these events){% endif %}</td></tr>
{% endfor %}
</tbody>
</table>
</div>

{% if epsilon %}
<figure id="figure-epsilon">{{ epsilon }}
<figcaption>Epsilon spent by the end of each round against the {{ report.epsilon_by_round.adversary }}, computed
from the ledger at a few rounds; the dashed line is the target.{% if report.epsilon_by_round.left_out %} Of {{ report.silos | length }} silos, those with the largest epsilon and the smallest are drawn.{% endif %}</figcaption></figure>
{% endif %}

<h2>What was released, and by which mechanism</h2>
<div class="scroll">
<table>
<caption>Every use of private data in the ledger that an adversary sees something of.</caption>
<thead><tr><th scope="col">Purpose</th><th scope="col">Mechanism</th><th scope="col">Seen so by</th><th scope="col" class="num">Silos</th><th scope="col" class="num">Rows</th><th scope="col" class="num">Uses</th></tr></thead>
<tbody>
{% for row in report.releases %}
<tr><th scope="row">{{ row.purpose }}{% if row.owner != "this run" %}<small class="soft">{{ row.owner }}</small>{% endif %}</th><td>{{ row.mechanism }}</td><td>{{ row.seen_by | join(", ") }}</td><td class="num">{{ row.silos | number }}</td><td class="num">{{ row.rows | number }}</td><td class="num">{{ row.uses | number }}</td></tr>
{% else %}
<tr><td colspan="6">Nothing is recorded.</td></tr>
{% endfor %}
</tbody>
</table>
</div>

<h2>What the guarantee assumes</h2>
{{ titled(report.assumptions) }}

<h2>What is not covered</h2>
{{ titled(report.not_covered) }}

<h2>The ledger</h2>
<p>{% if ledger.ok %}<strong class="good">Verified:</strong> the chain of hashes over all
{{ ledger.rows | number }} rows is whole. {% else %}<strong class="bad">Not verified:</strong>
{{ ledger.problems | join("; ") or "the ledger could not be read" }}. {% endif %}
{{ ledger.rows_of_this_run | number }} rows are of this run{% if ledger.shared %}; the ledger is shared
by {{ ledger.runs | length }} {{ "run" if ledger.runs | length == 1 else "runs" }}{% endif %}. Keep the last hash with the signature: a later verification against it
shows whether a row was changed or taken away.</p>
{{ pairs("Ledger", {"file": ledger.file, "rows": ledger.rows, "last row": ledger.last_row, "last hash (SHA-256)": ledger.last_hash}) }}

<h2>Quality of the model</h2>
{% if learning %}
<figure id="figure-learning">{{ learning }}
<figcaption>On examples that no silo trains on.</figcaption></figure>
{% endif %}
{% if training.evaluations %}
<div class="scroll">
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

<h2>Course of the run</h2>
{% if training.withheld %}
<p>{{ training.finished_rounds }} rounds in {{ training.seconds | seconds }}. Replies, traffic and failures
by round are withheld: the guarantee uses that nobody knows which silos took part in a round.</p>
{% else %}
<p>{{ training.finished_rounds }} rounds in {{ training.seconds | seconds }}; {{ training.replies | number }} updates received;
{{ training.bytes_down | bytes }} sent to the silos, {{ training.bytes_up | bytes }} received.</p>
{% if traffic %}<figure id="figure-traffic">{{ traffic }}<figcaption>Bytes of trained tensors by round.</figcaption></figure>{% endif %}
{% if training.incidents %}
<div class="scroll">
<table>
<caption>Replies that failed or were refused, and silos that left.</caption>
<thead><tr><th scope="col">Silo</th><th scope="col">What</th><th scope="col">Reason</th><th scope="col" class="num">Times</th><th scope="col" class="num">Last in round</th></tr></thead>
<tbody>
{% for item in training.incidents %}
<tr><th scope="row">{{ item.silo }}</th><td>{{ item.kind }}</td><td>{{ item.reason }}</td><td class="num">{{ item.times }}</td><td class="num">{{ item.last_round }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
<p>No reply failed or was refused; no silo left.</p>
{% endif %}
{% endif %}

<h2>Settings</h2>
<div class="columns">
{{ pairs("Experiment", top) }}
{% for name, section in sections.items() %}
{{ pairs(name, section) }}
{% endfor %}
</div>

<h2>Environment, and how to reproduce this report</h2>
{% if report.environment %}
<div class="columns">
{{ pairs("Machine of the server", {"Python": report.environment.python, "platform": report.environment.platform, "CPU": report.environment.cpu, "cores": report.environment.cores, "memory": report.environment.memory_bytes | bytes if report.environment.memory_bytes else none, "GPUs": report.environment.gpus or "none", "revision": (report.environment.git.revision ~ (" with local changes" if report.environment.git.dirty else "")) if report.environment.git else none}) }}
{{ pairs("Packages", report.environment.packages) }}
</div>
{% endif %}
<p>The report is made again from the run folder with <code>fedllm report {{ run.folder }}</code>, and its
content as data is in <code>report.json</code>. The settings above are in <code>settings.toml</code>.</p>

<section aria-label="Signature" class="sign">
  <div>Name and role</div><div>Place and date</div><div>Signature</div>
</section>
</main>
<footer>{{ report.made_by }}. This page loads nothing from elsewhere.</footer>
</body>
</html>
"""
