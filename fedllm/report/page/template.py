"""The report's page as a Jinja2 template. Text in Python, since Flower's app bundles carry no .html."""

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
{% macro steps(trainings, key, pattern) %}
{% for t in trainings %}<span>{{ pattern | format(t[key]) }}{% if not loop.last %}<br>{% endif %}</span>{% else %}–{% endfor %}
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

{% if unguarded %}
<div class="notice warn" id="membership"><strong>Membership inference, measured:</strong>
{% if report.membership %}{{ measured(report.membership) }}{% else %}<p>Not measured for this model (no <code>membership.json</code> in the run folder; <code>python -m simulations.attacks.membership.run</code> writes it). Nothing bounds what it tells of a single record.</p>{% endif %}</div>
{% endif %}
{% if report.problems %}
<div class="notice warn" id="problems"><strong>Missing or damaged in this run folder:</strong>
<ul>{% for problem in report.problems %}<li>{{ problem }}</li>{% endfor %}</ul></div>
{% endif %}
{% if report.notes %}
<div class="notice warn" id="notes"><strong>Unfinished:</strong>
<ul>{% for note in report.notes %}<li>{{ note }}</li>{% endfor %}</ul></div>
{% endif %}

<h1>Privacy report: {{ run.name }}</h1>
<p class="soft">Run <code>{{ run.run_id or "not known" }}</code>, started {{ run.created | moment }}, {{ run.status }}
after {{ run.round }}{% if run.rounds is not none %} of {{ run.rounds }}{% endif %} rounds{% if run.message %} ({{ run.message }}){% endif %}.
Report of {{ report.made | moment }} by {{ report.made_by }}.</p>

<dl class="tiles">
  <div><dt>epsilon{% if g.level == "outsider-only" %}, outsiders only{% elif g.level == "conditional" %}, seed unknown{% elif g.level == "if-fixed" %}, conditional{% elif g.level == "not-as-asked" %}, by proof{% endif %}</dt><dd>{{ "none stated" if g.level == "unknown" else g.epsilon | epsilon }}</dd></div>
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

<h2>What was released of each silo's data</h2>
<p>{% if report.vouching is not none %}Every number is what a silo vouches for, by a signed extract of its own ledger, or what the events in the
extract cost, whichever is larger; over everything that its ledger holds about its data{% else %}Every number is computed from the privacy ledger, over everything that the ledger holds about a
silo's data{% endif %}{% if ledger.runs | length > 1 %} ({{ ledger.runs | length }} runs){% endif %}, as far as it was released
so far: a guarantee only if where it stopped did not depend on the outputs. Where a run's plan, or a budget, is what holds, it stands below the figure. The unit is
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
  <td data-label="target" class="num"><span>{{ row.silo.target.epsilon | number }}{% if row.silo.target.run_epsilon is not none %} <small>{{ row.silo.target.run_epsilon | number }} in this run</small>{% endif %}{% if row.silo.target.delta != g.delta %} <small>at delta {{ "%g" | format(row.silo.target.delta) }}{% if row.silo.target.spent is not none %}: spent {{ row.silo.target.spent | epsilon }} against the server{% endif %}</small>{% endif %}</span></td>
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

{% if report.copies %}
<p id="copies">Several copies of one record at silo {{ report.copies.silo }}, all of them together, against the
{{ report.copies.adversary }} (PLD, delta {{ "%g" | format(g.delta) }}, {{ g.relation }}):
{% for cost in report.copies.costs %}{{ cost.copies }} {{ "copy" if cost.copies == 1 else "copies" }}: epsilon {{ "not proven" if cost.epsilon is none else cost.epsilon | epsilon }}{{ "; " if not loop.last else "." }}
{% endfor %}</p>
{% endif %}

{% if epsilon or delta_curve %}
<h2>How the privacy was spent</h2>
<div class="figures">
{% if epsilon %}
<figure id="figure-epsilon">{{ epsilon }}
<figcaption>Epsilon of what was released by the end of each round (a guarantee only if where the run stops does not depend on the outputs; what holds is in the first line) against the {{ report.epsilon_by_round.adversary }}, computed
from the ledger at a few rounds{% if report.target.epsilon is not none %}; the dashed line is the target{% endif %}.{% if report.epsilon_by_round.left_out %} Of {{ report.silos | length }} silos, those with the largest epsilon and the smallest are drawn.{% endif %}</figcaption></figure>
{% endif %}
{% if delta_curve %}
<figure id="figure-delta">{{ delta_curve }}
<figcaption>The guarantee of the silo with the largest epsilon, {{ curves.silo }}, against the {{ curves.adversary }}:
for every epsilon the delta that holds with it. One point of the curve is stated; all of it holds.
{% if curves.mu is not none %}The second line is that of the dominating mu, {{ curves.mu | mu }}: one number whose curve is never below the first (for every delta above {{ "%.0e" | format(curves.mu_floor) }}).{% endif %}</figcaption></figure>
<figure id="figure-tradeoff">{{ trade_off }}
<figcaption>The same guarantee as a test: who tries to tell whether one given {{ "example" if g.unit == "example" else "silo's data" }} was used
cannot come below the curve. On the dotted line one only guesses.
{% if curves.mu is not none %}The curve of the dominating mu is never above (but for {{ "%.0e" | format(curves.mu_floor) }}).{% endif %}</figcaption></figure>
{% endif %}
</div>
{% endif %}

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

{% if report.encoding %}
{% set code = report.encoding %}
<h2>Encoding</h2>
<p>Updates travel encoded by the codec <strong>{{ code.codec }}</strong>{% if code.bytes and code.float32_bytes %}: {{ code.bytes | number }} bytes
for each silo and round in the place of {{ code.float32_bytes | number }} (float32), {{ "%.1f" | format(code.float32_bytes / code.bytes) }} times less{% endif %}.
{% if code.noise == "in-code" %}Clipping and noise are applied to the code. {% else %}The noise is in the update before it is encoded (with noise by the server: after it is decoded). {% endif %}
{% if code.prior_source == "private" %}The codec was fitted to statistics that {{ code.statistics_silos | value }} silos released before training: they are events of the ledger.
{% elif code.prior_source == "public" %}The codec was fitted to gradients of the server's own text, which uses no silo's data.
{% else %}The codec is fitted to no data.{% endif %}{% if code.prior_chance_of_noise is not none %}
{% if code.prior_chance_of_noise > noise_alone %}<strong>Noise alone gives such statistics with probability {{ "%.2g" | format(code.prior_chance_of_noise) }}: the codec was fitted to noise, and knows nothing of the gradients.</strong>
{% else %}That noise alone gives such statistics has a probability of {{ "%.1g" | format(code.prior_chance_of_noise) }}.{% endif %}{% endif %}</p>
{{ pairs("Codec", {"numbers of an update": code.dimension, "numbers of its code": code.code_dimension, "bits": code.bits, "downlink": code.downlink, "prior": code.prior or "none", "version (SHA-256)": code.version, "version of the prior": code.prior_version or "none"}) }}
{% if code.mu %}
<div class="scroll" tabindex="0" role="region" aria-label="Statistics and training apart">
<table>
<caption>mu of Gaussian differential privacy in this run, of the silo with the largest: statistics and training apart.</caption>
<thead><tr><th scope="col">Adversary</th><th scope="col">Silo</th><th scope="col">Statistics</th><th scope="col">Training</th><th scope="col">All</th></tr></thead>
<tbody>
{% for row in code.mu %}
<tr><th scope="row">{{ row.adversary }}</th><td>{{ row.silo }}</td>{% for part in (row.statistics, row.training, row.total) %}<td>{% if part.mu is none %}none{% else %}{{ part.mu | mu }} <small class="soft">{{ "exact" if part.exact else "dominating, a bound" }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% endif %}

{% if report.layers %}
{% set choice = report.layers %}
<h2>Layers</h2>
<p>{% if choice.kept is none %}The layers that keep their prefix are not chosen yet{% else %}Of the layers {{ choice.layers | join(", ") }} only <strong>{{ choice.kept | join(", ") }}</strong> keep their prefix, since round {{ choice.round }}{% endif %}:
a layer is kept where the loss without its prefix is sharper (Privacy-Flat, level 2).
{% if choice.form == "public" %}The scores are of the server's public text, and use no silo's data.
{% elif choice.form == "private" %}The scores are relative to the mean over the layers, those of the silos, clipped and noisy: they are events of the ledger.
{% elif choice.form == "private-top-k" %}The scores count the silos' votes, each a noisy choice: they are events of the ledger.
{% else %}The scores are those of the silos as they are: <strong class="bad">no guarantee</strong> for what they are made of.{% endif %}</p>
{% if choice.steps %}
<div class="scroll" tabindex="0" role="region" aria-label="Scores of the layers">
<table>
<caption>Scores ({{ "random directions" if choice.measure == "random" else "one ascent step" }}, radius {{ "%.3g" | format(choice.radius) }}{% if choice.search == "greedy" %}, one layer dropped at a time{% endif %}); the higher, the more the layer's prefix flattens. The margin is from the lowest that was kept to the highest that was dropped: below the noise, the choice is mostly the noise's.</caption>
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

{% if report.lmo %}
{% set lmo = report.lmo %}
<h2>LMO noise</h2>
<p>The vectors of training carry the noise of LMO-DP, Laplace noise of random scale. Its published accounting is
that of one number, at orders where its formula does not hold; gradients are vectors, and a change that is spread
over their coordinates costs far more. What is claimed is shown beside what is true, for the silo
<strong>{{ lmo.silo }}</strong>, at delta = {{ "%g" | format(lmo.delta) }}. The noise has a standard deviation of {{ "%.4g" | format(lmo.std) if lmo.std is number else "∞" }} clipping norms;
Gaussian noise that truly costs as much has {{ "%.4g" | format(lmo.gaussian_std) }}.</p>
<div class="scroll" tabindex="0" role="region" aria-label="LMO noise: claimed and true">
<table id="lmo">
<caption>Epsilon of LMO noise: as claimed, and truly.</caption>
<thead><tr><th scope="col">Account</th><th scope="col" class="num">One step, not sampled</th><th scope="col" class="num">All {{ lmo.steps | number }} steps{% if lmo.sampling_rate < 1 %}, sampled{% endif %}</th><th scope="col">Holds</th></tr></thead>
<tbody>
<tr><th scope="row">claimed</th><td class="num approximation">{{ lmo.step.claimed | epsilon }}</td><td class="num approximation">{{ lmo.published | epsilon }} <small class="soft">as the authors' code composes; {{ lmo.training.claimed | epsilon }} by R&eacute;nyi composition{% if lmo.sampling_rate < 1 %} without sampling{% endif %}</small></td><td><strong class="bad">no bound</strong>: the formula of one number{% if not (lmo.step.order_exists and lmo.training.order_exists) %}, at order {{ lmo.training.order if lmo.step.order_exists else lmo.step.order }}; only orders below {{ "%.4g" | format(lmo.largest_order) }} exist{% endif %}</td></tr>
<tr><th scope="row">true, change spread over the coordinates</th><td class="num">{{ lmo.step.spread | epsilon }}</td><td class="num">{{ lmo.training.spread | epsilon }}</td><td>the limit of many coordinates: about what is truly spent, and no bound of all changes</td></tr>
<tr><th scope="row">proven for every change</th><td class="num">{{ lmo.step.bound | epsilon }}</td><td class="num">{{ lmo.training.bound | epsilon }}</td><td><strong class="good">upper bound</strong>, what the ledger counts</td></tr>
</tbody>
</table>
</div>
{% endif %}

{% if report.black_box %}
{% include "black-box.html" %}
{% endif %}

<h2>What the guarantee assumes</h2>
{{ titled(report.assumptions) }}

<h2>What is not covered</h2>
{% if report.not_covered %}{{ titled(report.not_covered) }}{% else %}<p>Not known: the settings cannot be read.</p>{% endif %}

{% if report.vouching is not none %}
<h2>Who vouches for what</h2>
<p>The ledgers are with the silos. Each silo signs an extract of its ledger with its node key; the head stands for all rows
up to it. A signature proves who stated something, not that it is true.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Signed extracts of the silos' ledgers">
<table class="stack" id="vouching">
<thead><tr><th scope="col">Silo</th><th scope="col">Vouches</th><th scope="col">Events</th><th scope="col" class="num">Rows of this run</th><th scope="col" class="num">Of other runs</th><th scope="col">Ledger's head</th><th scope="col" class="num">Own budget left</th><th scope="col">Node key</th></tr></thead>
<tbody>
{% for row in report.vouching %}
<tr><th scope="row">{{ row.silo }}</th><td data-label="vouches"><span>{% if row.vouches %}<strong class="good">yes</strong>, {{ row.made | moment }}{% if not row.final %}, before the end of the run{% endif %}{% for text in row.disagreements %}<small class="soft">DISAGREES: {{ text }}</small>{% endfor %}{% else %}<strong class="bad">no: nothing is known</strong><small class="soft">{{ row.why }}</small>{% endif %}</span></td><td data-label="events"><span>{{ {"sent": "sent, accounted again", "kept": "kept by the silo"}.get(row.events, "–") }}</span></td><td data-label="rows of this run" class="num"><span>{{ row.rows_of_run | number }}</span></td><td data-label="of other runs" class="num"><span>{{ row.rows_of_other_runs | number }}</span></td><td data-label="head"><span>{% if row.hash %}row {{ row.rows }} <code>{{ row.hash[:16] }}…</code>{% else %}–{% endif %}</span></td><td data-label="own budget left" class="num"><span>{% if row.budget %}{{ row.budget.left | value }} of {{ row.budget.epsilon | value }} at delta {{ "%g" | format(row.budget.delta) }}{% else %}–{% endif %}</span></td><td data-label="node key"><span><code>{{ row.key or "–" }}</code></span></td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
<h2>The ledger</h2>
<p>{% if ledger.ok %}<strong class="good">Verified:</strong> the chain of hashes over all
{{ ledger.rows | number }} rows is whole. {% else %}<strong class="bad">Not verified:</strong>
{{ ledger.problems | join("; ") or "the ledger could not be read" }}. {% endif %}
{{ ledger.rows_of_this_run | number }} rows are of this run{% if ledger.shared %}; the ledger is shared
by {{ ledger.runs | length }} {{ "run" if ledger.runs | length == 1 else "runs" }}{% endif %}. Keep the last hash with the signature: a later verification against it
shows whether a row was changed or taken away.</p>
{{ pairs("Ledger", {"file": ledger.file, "rows": ledger.rows, "last row": ledger.last_row, "last hash (SHA-256)": ledger.last_hash}) }}
{% endif %}

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

{% if report.membership and not unguarded %}
<h2>Membership inference, measured</h2>
{{ measured(report.membership) }}
{% endif %}

<h2>Course of the run</h2>
{% if taught %}
<p id="teacher"><strong>Teacher <code>{{ taught.kind }}</code>.</strong> {{ taught.sentence }}</p>
<p>{{ taught.rounds }} rounds with it{% if taught.start %}, after {{ taught.start }} without{% endif %}:
{{ taught.steps }} {{ "step" if taught.steps == 1 else "steps" }} each, closeness of weights (strength {{ "%g" | format(taught.strength) }}{% if taught.decay is not none %}, decay {{ "%g" | format(taught.decay) }}{% endif %})
{% if taught.distillation %}and of answers on public text (weight {{ "%g" | format(taught.distillation) }}, temperature {{ "%g" | format(taught.temperature) }}){% endif %},
{{ taught.seconds | seconds }} on the server{% if taught.last_distance is not none %}; distance of the weights before the last pull {{ "%.4g" | format(taught.last_distance) }}{% endif %}{% if taught.last_divergence is not none %}, divergence of the answers {{ "%.4g" | format(taught.last_divergence) }}{% endif %}.
{% if taught.public %}It was trained in {{ taught.public.steps | number }} steps on {{ taught.public.examples | number }} public examples ({{ taught.public.left_out_in_evaluation | number }} texts that the server evaluates on were left out{% if taught.public.in_silos %}; {{ taught.public.in_silos | number }} are examples of a silo too{% endif %}){% if taught.public.evaluation.accuracy is defined %}; by itself it reaches an accuracy of {{ "%.1f" | format(100 * taught.public.evaluation.accuracy) }}%{% endif %}.{% endif %}</p>
{% endif %}
{% if training.perturbation %}
{% set awp = training.perturbation %}
<p>Gradients were taken at adversarially perturbed weights{% if awp.rounds %} in the first {{ awp.rounds | number }} {{ "round" if awp.rounds == 1 else "rounds" }}{% endif %} (form <strong>{{ awp.form }}</strong>, gamma {{ "%.4g" | format(awp.gamma) }} of the norm of each prefix layer{{ " and of the head" if awp.head }}). {{ awp.guarantee }}</p>
{% endif %}
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
</html>
"""
