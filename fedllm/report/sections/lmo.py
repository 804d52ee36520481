"""The report's section on LMO noise: what its published accounting claims, beside what is true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedllm.report.accounting import EVERYBODY, SiloAccounting
from fedllm.report.ledger_reading import mechanisms_by_rate
from fedllm.report.record import RunRecord
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
    "claimed": "that is what LMO-DP's published accounting claims of this noise, at orders where its "
    "formula does not hold, and for one number where vectors are released",
    "true": "that is what a change costs that is spread over many coordinates, and nothing proves that no "
    "other change costs more",
}


def unproven(run: RunRecord) -> str | None:
    """What the report says before its statement of a run of an earlier version whose noise was calibrated to a
    figure that is no bound (``privacy.calibrate_to``); else None."""
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
    """The section, of the silo with the most steps of the least noise; None where no vector of this run
    was released with LMO noise."""
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
        """Epsilon of all steps with sampling, where a step costs mu at most."""
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
