"""The report on training through outputs alone: what was clipped, what was sent, and what the noise was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent
from pydantic import Field

from fedllm.models.embedded import cache_folder
from fedllm.report.accounting import EVERYBODY, Accounts, SiloAccounting
from fedllm.report.guarded import guarded
from fedllm.report.ledger_reading import mechanisms_by_rate
from fedllm.report.record import RunRecord
from fedllm.report.schema_base import Part, Real
from fedllm.run.folder import NUMBERS
from fedllm.settings.checks.black_box import noises_numbers
from fedllm.settings.experiment import Settings
from privacy.calibration import calibrate_noise_multiplier
from privacy.events.constructors import poisson_sampled
from privacy.events.kinds import ScalarNoiseDpEvent, noise_of
from privacy.events.multiset import multiset
from privacy.mechanisms.scalar_noise import GaussianNoise, ScalarNoise

BYTES = 4
"""Bytes of one number of a silo's message, float32."""
DIRECTIONS = (
    "The directions of each round follow from a seed that the server announces, and are public, as are the "
    "model and the smoothing. Nothing of the guarantee rests on their being random: a server that chose "
    "them would learn other numbers with the same protection."
)

ENDPOINT = (
    "The texts of each silo's examples go to the completion endpoint that the silo uses, as they are. No epsilon "
    "here speaks about what the endpoint, its operator or the line to it sees: it is the silo's own, or one "
    "that the silo trusts with its data."
)


class SeenPart(Part):
    """One party's view of a silo's data."""

    who: str
    what: str
    covered: bool = Field(
        description="True if epsilon bounds its information, or if there is none."
    )


class NumberNoisePart(Part):
    """The noise on a silo's numbers, in units of the clipping norm, of the silo with the least."""

    silo: str
    family: str
    parameters: dict[str, float]
    releases: int = Field(description="Numbers, or vectors of them, each with fresh noise.")
    sampling_rate: Real
    epsilon: Real | None = Field(description="Of these releases alone, by PLD.")
    std: Real
    mean_abs: Real
    gaussian_std: Real | None = Field(
        description="Of Gaussian noise at the same epsilon; null if unknown."
    )
    gaussian_mean_abs: Real | None


class BlackBoxPart(Part):
    """Training through a model's outputs alone."""

    endpoint: bool = Field(description="Whether the model is behind an HTTP endpoint.")
    seen: list[SeenPart]
    directions: int = Field(description="Of a local step.")
    local_steps: int
    numbers: int = Field(description="Of one silo's message of a round.")
    smoothing: float
    scale: Literal["prefix", "one"]
    subspace: int = Field(description="Dimension; 0: all coordinates.")
    released: Literal["vector", "numbers"] = Field(
        description="vector: clipped and noised together; numbers: each separately."
    )
    clip: float | None = Field(description="Of the vector in L2 norm, or of each number.")
    noise: NumberNoisePart | None = Field(description="Null: none was released with noise.")
    bytes_up: int = Field(description="Of one silo and round.")
    bytes_down: Real | None = Field(
        description="Mean over silos and rounds; null if no silo answered, or if it is withheld."
    )


def clipping(settings: Settings) -> str:
    """Describe the bound of the sensitivity in words."""
    clip, order = settings.privacy.clip, settings.zeroth_order
    single = noises_numbers(settings)
    several = f"over the {order.directions} directions of a step together"
    if settings.privacy.unit == "example":
        how = f"each to [-{clip:g}, {clip:g}]" if single else f"to L2 norm {clip:g} {several}"
        return (
            "Each example's differences of losses along the random directions (over twice the smoothing "
            f"{order.smoothing:g}) are clipped, {how}; one that is not finite counts as zero. Each sum is "
            f"divided by the constant {settings.client.batch_size}, not by the number drawn."
        )
    numbers = order.directions * settings.client.local_steps
    how = f"each to [-{clip:g}, {clip:g}]" if single else f"as one vector to L2 norm {clip:g}"
    return (
        f"The {numbers} numbers that a silo sends in a round are clipped, {how}, before noise is added. They "
        "are averaged with equal weights, which do not depend on data."
    )


def black_box(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    accounts: Accounts,
    training: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Return the section; None if the model was trained by gradients, or the settings are lost.

    Args:
        training: of :func:`fedllm.report.sections.training.summarise`, for the bytes.
    """
    settings = run.settings
    if settings is None or settings.model.access != "black-box":
        return None
    order = settings.zeroth_order
    numbers = order.directions * settings.client.local_steps
    private = settings.privacy.mode == "dp"
    noise = guarded(
        "the noise on the numbers",
        run.problems,
        lambda: _noise(run, accounted, accounts) if private else None,
        None,
    )
    if noise is not None and noise["family"] != "gaussian" and not noises_numbers(settings):
        run.problems.append(
            f"{NUMBERS} is missing: the ledger has noise on each number that the settings do not name, so the "
            "clipping of the numbers is unknown"
        )
    replies = training.get("replies")
    down = training["bytes_down"] / replies if replies else None
    return {
        "endpoint": settings.endpoint.active,
        "seen": _seen(settings, numbers),
        "directions": order.directions,
        "local_steps": settings.client.local_steps,
        "numbers": numbers,
        "smoothing": order.smoothing,
        "scale": order.scale,
        "subspace": order.subspace,
        "released": "numbers" if noises_numbers(settings) else "vector",
        "clip": settings.privacy.clip if private else None,
        "noise": noise,
        "bytes_up": BYTES * numbers,
        "bytes_down": down,
    }


def _seen(settings: Settings, numbers: int) -> list[dict[str, Any]]:
    """Return each party's view of a silo's data, and if epsilon covers it."""
    private = settings.privacy.mode == "dp"
    by_server = settings.privacy.noise_by == "server"
    bare = "without noise" if not private or by_server else "with noise"
    found = [
        {
            "who": "server",
            "what": f"{numbers} numbers a round, {bare}",
            "covered": private and not by_server,
        },
        {
            "who": "outsiders, other silos",
            "what": "the model after each round, which is made of the silos' mean numbers",
            "covered": private,
        },
    ]
    if settings.endpoint.active:
        prompts = max(1, len(settings.endpoint.prompts))
        times = "one prompt" if prompts == 1 else f"{prompts} prompts"
        what = f"the text of every example that a step draws, in the clear, in {times}"
        return [*found, {"who": "owner of the endpoint", "what": what, "covered": False}]
    what = "nothing: the model runs at the silo, which asks it for losses"
    return [*found, {"who": "owner of the model", "what": what, "covered": True}]


def _noise(
    run: RunRecord, accounted: Sequence[SiloAccounting], accounts: Accounts
) -> dict[str, Any] | None:
    """Return the noise on the numbers of the silo that got the least of it, next to Gaussian noise that costs as much
    in its place; None if nothing was released with noise."""
    found: list[tuple[float, int, float, str, DpEvent, ScalarNoise]] = []
    for silo in accounted:
        rows = [row for row in run.own if row.party in (silo.name, EVERYBODY)]
        rows = [row for row in rows if row.purpose == "train"]
        for (event, rate), count in mechanisms_by_rate(rows).items():
            noise = _noise_of(event)
            if noise is not None:
                found.append((noise.mean_abs, -count, -rate, silo.name, event, noise))
    if not found:
        return None
    _, count, rate, name, event, noise = min(found, key=lambda row: row[:4])
    releases, rate = -count, -rate
    sampled = poisson_sampled(rate, (event,)) if rate < 1 else event
    figure = accounts.figure("pld", multiset({sampled: releases}))
    epsilon = None if figure is None else figure.epsilon
    gaussian: ScalarNoise | None = noise if noise.family == "gaussian" else None
    if gaussian is None and epsilon is not None and 0 < epsilon < math.inf:
        gaussian = GaussianNoise(
            calibrate_noise_multiplier(
                epsilon=epsilon,
                delta=accounts.delta,
                sampling_rate=rate,
                steps=releases,
                relation=accounts.relation,
                cache_dir=cache_folder() / "calibration",
            ).noise_multiplier
        )
    return {
        "silo": name,
        "family": noise.family,
        "parameters": noise.parameters,
        "releases": releases,
        "sampling_rate": rate,
        "epsilon": epsilon,
        "std": noise.std,
        "mean_abs": noise.mean_abs,
        "gaussian_std": None if gaussian is None else gaussian.std,
        "gaussian_mean_abs": None if gaussian is None else gaussian.mean_abs,
    }


def _noise_of(event: DpEvent) -> ScalarNoise | None:
    """Return the noise on each number, in units of the clipping norm."""
    if isinstance(event, ScalarNoiseDpEvent):
        return noise_of(event)
    if isinstance(event, dp.GaussianDpEvent) and event.noise_multiplier > 0:
        return GaussianNoise(float(event.noise_multiplier))
    return None


MARKUP = """\
{% if report.black_box %}
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
{{ pairs("Steps", {"smoothing of the difference quotients": box.smoothing, "size of a direction's entries": "the prefix's own, layer by layer" if box.scale == "prefix" else "1", "subspace": box.subspace or "none, all coordinates"}) }}{% endif %}
"""
