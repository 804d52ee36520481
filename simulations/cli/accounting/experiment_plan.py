"""``fedllm calibrate EXPERIMENT``: print an experiment's plan for each silo."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import typer
from rich.text import Text

from simulations.output import epsilon_text, make_table, print_json, print_parts, rounded

if TYPE_CHECKING:
    from fedllm.settings.experiment import Settings

_SHOWN = {"pld": "PLD", "rdp": "RDP"}


def calibrate_experiment(
    ctx: typer.Context, experiment: Path, overrides: list[str], as_json: bool
) -> None:
    """Print the plan of an experiment; refuse options that its settings replace.

    Raises:
        ValueError: such an option, or what :func:`~simulations.plans.experiment.plan_experiment` raises.
    """
    default = click.core.ParameterSource.DEFAULT
    for name in ctx.params:
        stray = name not in ("experiment", "overrides", "as_json")
        if stray and ctx.get_parameter_source(name) is not default:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"Expected {option} without an experiment (override its settings with --set); "
                f"got {option} with {experiment}"
            )
    import fedllm

    settings = fedllm.load_settings(experiment, overrides)
    from simulations.plans.accounting_figures import quiet

    with quiet():
        found = fedllm.plan(settings)
    if as_json:
        print_json(found)
    else:
        _print_plan(found, settings)


def _print_plan(found: Mapping[str, Any], settings: Settings) -> None:
    """Print one row per silo."""
    from simulations.live import epsilon_label, target_text

    epsilons = f"epsilon by {', '.join(_SHOWN.values())}"
    table = make_table("silo", "examples", "rate", "steps", "target", "noise", epsilons)
    table.columns[0].no_wrap = True
    notes = []
    for name, silo in found["silos"].items():
        start = (Text(name), f"{silo['examples']:,}")
        target = target_text(silo, settings)
        if "leaves" in silo:
            table.add_row(*start, "-", "-", target, "-", "leaves")
            notes.append(f"{name} leaves: {silo['leaves']}")
            continue
        if silo["spent"]:
            target += f"; other runs spent {epsilon_text(silo['spent'])}"
        values = [silo["figures"][key]["epsilon"] for key in _SHOWN]
        table.add_row(
            *start,
            f"{silo['sampling_rate']:.4g}",
            f"{silo['steps']:,}",
            target,
            rounded(silo["noise_multiplier"], 5, math.ceil) if silo["noise_multiplier"] else "none",
            "  ".join("none" if value is None else epsilon_text(value) for value in values),
        )
        if silo["filter"] is not None:
            notes.append(
                f"{name}: together with the other runs on its ledger, {silo['filter']} enforces the budget; the epsilons in "
                "the table would hold only if all runs had been fixed beforehand"
            )
        notes += [f"NO GUARANTEE: {reason}" for reason in silo["figures"].get("no_guarantee", [])]
    if found["drawn"]:
        notes.append(
            "The participating silos are drawn at the start of each run (server.sampling=poisson): the "
            "printed steps and noise are those of one draw"
        )
    notes += [f"Warning: {sentence}" for sentence in found["warnings"]]
    label = epsilon_label(settings, len(found["silos"])).removesuffix(
        f", {settings.privacy.accountant.upper()}"
    )
    print_parts(
        f"Planned: {found['experiment']}; noise as a multiple of the clipping norm; epsilons are upper bounds: {label}",
        table,
        *dict.fromkeys(notes),
    )
