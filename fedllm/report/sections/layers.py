"""The report's section on the choice of layers: scores, kept layers, and what the choice cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fedllm.flatness.layer_choice import CHOICE, Choice, Step, read_choice
from fedllm.report.accounting import Accounts, SiloAccounting
from fedllm.report.record import RunRecord
from fedllm.report.sections.encoding import mu_by_purpose

PURPOSE = "layer-scores"


def layers(
    run: RunRecord, accounted: Sequence[SiloAccounting], accounts: Accounts
) -> dict[str, Any] | None:
    """The section; None where the run chooses no layers, or its settings are lost."""
    if run.settings is None or run.settings.layers.form == "none":
        return None
    chosen, told = run.settings.layers, _told(run)
    if (told is None or told.kept is None) and run.state["round"] > chosen.after:
        run.problems.append(f"{CHOICE} is missing or damaged: which layers were kept is not known")
    mu = []
    if chosen.asks_silos:
        purposes = (("scores", PURPOSE), ("training", "train"))
        mu = mu_by_purpose(run, accounted, accounts, purposes)
    return {
        "form": chosen.form,
        "measure": chosen.measure,
        "search": chosen.search,
        "radius": chosen.radius,
        "round": None if told is None else told.round,
        "layers": None if told is None else list(told.layers),
        "kept": None if told is None or told.kept is None else list(told.kept),
        "steps": [
            {
                "candidates": list(step.candidates),
                "mean": list(step.mean),
                "noise_std": step.noise_std,
                "dropped": list(step.dropped),
                "margin": _margin(step),
                "silos": len(step.sampling_rates),
                "seconds": step.seconds,
                "bytes": step.bytes_up + step.bytes_down,
            }
            for step in (() if told is None else told.steps)
        ],
        "mu": mu,
    }


def unrecorded_scores(run: RunRecord) -> list[str]:
    """Silos whose scores chose the layers, and of which the ledger has too few rows."""
    told = _told(run)
    recorded = Counter(row.party for row in run.own if row.purpose == PURPOSE)
    used = Counter(silo for step in (told.steps if told else ()) for silo in step.sampling_rates)
    missing = sorted(silo for silo, count in used.items() if count > recorded[silo])
    if not missing:
        return []
    shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
    return [
        f"the layers were chosen by scores of which the ledger has no row, of {shown}: something was "
        "released without a record"
    ]


def _margin(step: Step) -> float:
    """The lowest score that was kept minus the highest that was dropped."""
    scores = dict(zip(step.candidates, step.mean, strict=True))
    dropped = [scores.pop(layer) for layer in step.dropped]
    return min(scores.values()) - max(dropped)


def _told(run: RunRecord) -> Choice | None:
    try:
        return read_choice(run.path)
    except (OSError, ValueError):
        return None
