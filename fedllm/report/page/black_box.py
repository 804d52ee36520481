"""The report's section on training through outputs alone, as a Jinja2 template that the page includes."""

from __future__ import annotations

BLACK_BOX = """\
{% set box = report.black_box %}
<h2 id="black-box">Training through outputs alone</h2>
<p>The model gave losses and no gradients. In each of {{ box.local_steps }} local {{ "step" if box.local_steps == 1 else "steps" }} of a round a silo compared
the losses of its examples on both sides of the weights along {{ box.directions }} random {{ "direction" if box.directions == 1 else "directions" }}, which the server had announced by a seed.
Its message is <strong>{{ box.numbers | number }} {{ "number" if box.numbers == 1 else "numbers" }}</strong>, {{ box.bytes_up | bytes }}, whatever the size of the model{% if box.bytes_down is not none %}; {{ box.bytes_down | bytes }} came down to it{% endif %}.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Who sees what">
<table class="stack" id="seen">
<caption>Who sees what of a silo's data.</caption>
<thead><tr><th scope="col">Who</th><th scope="col">Sees</th><th scope="col">Epsilon speaks about it</th></tr></thead>
<tbody>
{% for row in box.seen %}
<tr><th scope="row">{{ row.who }}</th><td data-label="sees"><span>{{ row.what }}</span></td><td data-label="epsilon"><span>{% if row.covered %}{{ "yes" if not row.what.startswith("nothing") else "nothing to cover" }}{% else %}<strong class="bad">no</strong>{% endif %}</span></td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% if box.noise %}
{% set noise = box.noise %}
<div class="scroll" tabindex="0" role="region" aria-label="Noise on the numbers">
<table id="number-noise">
<caption>Noise on each number, in units of {% if box.released == "numbers" %}its bound, {{ "%.4g" | format(box.clip) }}: every number is clipped and noised by itself{% else %}the clipping norm, {{ "%.4g" | format(box.clip) }}: the numbers that are clipped together have one vector's noise{% endif %}. Of the silo {{ noise.silo }}, which has the least: {{ noise.releases | number }} {{ "numbers" if box.released == "numbers" else "vectors" }}{% if noise.sampling_rate < 1 %}, each of a sample at rate {{ "%.4g" | format(noise.sampling_rate) }}{% endif %}{% if noise.epsilon is not none %}, epsilon {{ noise.epsilon | epsilon }} together{% endif %}.</caption>
<thead><tr><th scope="col">Noise</th><th scope="col" class="num">Standard deviation</th><th scope="col" class="num">Mean size</th></tr></thead>
<tbody>
<tr><th scope="row">{{ noise.family }}{% if noise.family != "gaussian" %} <small class="soft">{% for name, value in noise.parameters.items() %}{{ name }} {{ "%.4g" | format(value) }}{{ ", " if not loop.last }}{% endfor %}</small>{% endif %}</th><td class="num">{{ "%.4g" | format(noise.std) if noise.std is number else "∞" }}</td><td class="num">{{ "%.4g" | format(noise.mean_abs) if noise.mean_abs is number else "∞" }}</td></tr>
{% if noise.family != "gaussian" and noise.gaussian_std is not none %}
<tr><th scope="row">Gaussian in its place <small class="soft">as many numbers at the same epsilon</small></th><td class="num">{{ "%.4g" | format(noise.gaussian_std) }}</td><td class="num">{{ "%.4g" | format(noise.gaussian_mean_abs) }}</td></tr>
{% endif %}
</tbody>
</table>
</div>
{% endif %}
{{ pairs("Steps", {"smoothing of the difference quotients": box.smoothing, "size of a direction's entries": "the prefix's own, layer by layer" if box.scale == "prefix" else "1", "subspace": box.subspace or "none, all coordinates"}) }}
"""
