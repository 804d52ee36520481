"""The report's section on LMO noise: what its published accounting claims, next to what is true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from fedllm.report.accounting import EVERYBODY, SiloAccounting
from fedllm.report.ledger_reading import mechanisms_by_rate
from fedllm.report.record import RunRecord
from fedllm.report.schema_base import Part, Real
from privacy.accountants import make_accountant
from privacy.accountants.gaussian_curve import gaussian_epsilon
from privacy.accountants.vector_bound import gaussian_bound, limit_mu
from privacy.events.constructors import dp_sgd
from privacy.events.kinds import VectorNoiseDpEvent, noise_of
from privacy.guarantee import Relation
from privacy.lmo_dp.claim import claimed_epsilon
from privacy.lmo_dp.published import published_epsilon
from privacy.mechanisms.scalar_noise import LmoNoise

_NO_BOUND = {
    "claimed": "LMO-DP's published accounting claims this for the noise, at orders where its formula does not "
    "hold, and for one number although vectors are released",
    "true": "this is the cost of a change that is spread over many coordinates; no proof shows that no other "
    "change costs more",
}


class LmoCostPart(Part):
    """Epsilon of LMO noise on a vector, by three accounts."""

    claimed: Real = Field(
        description="By LMO-DP's published accounting, of one number at the best order, existing or not, "
        "without sampling. No bound of anything."
    )
    order: int
    order_exists: bool
    spread: Real = Field(
        description="Of a change spread over many coordinates, in the limit: close to the true cost."
    )
    bound: Real = Field(description="Proven for every change; the ledger counts this.")


class LmoPart(Part):
    """LMO noise: claimed and true cost, for the silo with the least noise."""

    silo: str
    parameters: dict[str, float] = Field(description="In units of the clipping norm.")
    delta: float
    steps: int
    sampling_rate: Real
    std: Real = Field(description="Of each coordinate's noise over the clipping norm.")
    gaussian_std: Real = Field(description="Of the Gaussian noise that truly costs as much.")
    largest_order: Real = Field(description="Orders below this exist.")
    step: LmoCostPart = Field(description="One step, without sampling.")
    training: LmoCostPart = Field(description="All steps; the claim without sampling.")
    published: Real = Field(
        description="The authors' figure for all steps with sampling: the cost of the Gaussian that the "
        "classical formula gives for one step's claim. It is not a bound."
    )


def unproven(run: RunRecord) -> str | None:
    """Return the report's opening warning for a run of an earlier version whose noise was calibrated to a figure that
    is not a bound (``privacy.calibrate_to``); else None."""
    figure, settings = str(run.removed.get("privacy.calibrate_to")), run.settings
    if figure not in _NO_BOUND or settings is None or settings.privacy.mode == "none":
        return None
    privacy = settings.privacy
    targets = {privacy.epsilon, *(silo.epsilon for silo in privacy.silos.values())}
    named = " and ".join(f"{value:g}" for value in sorted(v for v in targets if v is not None))
    return (
        f"NO GUARANTEE at epsilon = {named}, to which the noise was calibrated "
        f"(privacy.calibrate_to = {figure}): {_NO_BOUND[figure]}."
    )


def lmo(
    run: RunRecord, accounted: Sequence[SiloAccounting], relation: Relation, delta: float
) -> dict[str, Any] | None:
    """Return the section, of the silo with the most steps of the least noise; None if no vector of this run was
    released with LMO noise."""
    found = []
    for silo in accounted:
        rows = [row for row in run.own if row.party in (silo.name, EVERYBODY)]
        for (event, rate), count in mechanisms_by_rate(rows).items():
            noise = noise_of(event) if isinstance(event, VectorNoiseDpEvent) else None
            if isinstance(noise, LmoNoise):
                found.append((noise.width, -count, -rate, silo.name, noise))
    if not found:
        return None
    _, count, rate, name, noise = min(found, key=lambda row: row[:4])
    steps, rate = -count, -rate
    factor = 2.0 if relation.doubles else 1.0
    # What a replaced record may change is twice as large: the noise is half as large against it.
    against = noise.scaled(1 / factor)
    bound, limit = gaussian_bound(against), limit_mu(against)
    accountant = make_accountant("pld", relation)

    def training(mu: float) -> float:
        """Return epsilon of all steps with sampling, where a step costs mu at most."""
        events = dp_sgd(rate, factor / mu, steps)
        return accountant.epsilon({events: 1}, delta)

    one, many = claimed_epsilon(against, delta), claimed_epsilon(against, delta, steps)
    return {
        "silo": name,
        "parameters": noise.parameters,
        "delta": delta,
        "steps": steps,
        "sampling_rate": rate,
        "std": noise.std,
        "gaussian_std": factor / limit,
        "largest_order": one.largest_order,
        "step": {
            "claimed": one.epsilon,
            "order": one.order,
            "order_exists": one.valid,
            "spread": gaussian_epsilon(limit, delta),
            "bound": gaussian_epsilon(bound, delta),
        },
        "training": {
            "claimed": many.epsilon,
            "order": many.order,
            "order_exists": many.valid,
            "spread": training(limit),
            "bound": training(bound),
        },
        "published": published_epsilon(against, delta, rate, steps),
    }


MARKUP = """\
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
"""
