"""``fedllm calibrate``: solve for one parameter of DP-SGD, or plan an experiment."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.cli.accounting.experiment_plan import calibrate_experiment
from simulations.cli.accounting.options import (
    BOUND,
    Copies,
    Delta,
    Noise,
    Opponent,
    Rate,
    RelationName,
    Steps,
    UnitName,
)
from simulations.output import (
    AsJson,
    Overrides,
    epsilon_text,
    make_table,
    print_json,
    print_parts,
    require,
    rounded,
)


class AccountantName(StrEnum):
    """Accountants available for calibration: upper bounds only."""

    PLD = "pld"
    RDP = "rdp"


class Unknown(StrEnum):
    """Parameters that calibration can solve for."""

    NOISE_MULTIPLIER = "noise-multiplier"
    STEPS = "steps"
    SAMPLE_RATE = "sample-rate"
    DELTA = "delta"


def calibrate(
    ctx: typer.Context,
    experiment: Annotated[
        Path | None,
        typer.Argument(help="An experiment's TOML file, instead of --epsilon and a schedule."),
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Target epsilon.")] = None,
    delta: Delta = None,
    sample_rate: Rate = None,
    steps: Steps = None,
    noise_multiplier: Noise = None,
    solve_for: Annotated[
        Unknown, typer.Option(help="Parameter to solve for; the others must be given.")
    ] = Unknown.NOISE_MULTIPLIER,
    relation: Annotated[
        RelationName,
        typer.Option(
            help="Neighbouring relation; add-or-remove-one requires that the number of records stays secret."
        ),
    ] = RelationName.ZERO_OUT,
    accountant: Annotated[
        AccountantName, typer.Option(help="Accountant used to compute epsilon.")
    ] = AccountantName.PLD,
    unit: Annotated[
        UnitName, typer.Option(help="Privacy unit: the sampled and protected entity.")
    ] = UnitName.EXAMPLE,
    adversary: Opponent = "server",
    copies: Copies = 1,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Find the noise (or steps, sampling rate, delta) of DP-SGD that meets a target epsilon.

    With an experiment, print each silo's calibrated noise before any training; the model is not loaded.
    """
    if experiment is not None:
        calibrate_experiment(ctx, experiment, overrides or [], as_json)
        return
    if overrides:
        raise ValueError("Expected --set with an experiment only, got no experiment")
    if epsilon is None:
        raise ValueError("Expected --epsilon, or an experiment's TOML file; got neither")
    given = {
        Unknown.NOISE_MULTIPLIER: noise_multiplier,
        Unknown.STEPS: steps,
        Unknown.SAMPLE_RATE: sample_rate,
        Unknown.DELTA: delta,
    }
    if given.pop(solve_for) is not None:
        raise ValueError(
            f"Expected no --{solve_for} with --solve-for {solve_for}: it is the unknown"
        )
    for name, value in given.items():
        if value is None:
            raise ValueError(f"Expected --{name} with --solve-for {solve_for}, got none")
    least = epsilon >= 0 if solve_for is Unknown.DELTA else epsilon > 0
    require("--epsilon", epsilon, least and math.isfinite(epsilon), "a finite number > 0")
    import fedllm
    from privacy.guarantee import Adversary, Relation, Unit
    from simulations.plans.accounting_figures import assumes, quiet

    against = Adversary(adversary)
    names = {Unknown.SAMPLE_RATE: "sampling_rate", Unknown.NOISE_MULTIPLIER: "noise_multiplier"}
    known: dict[str, Any] = {names.get(name, str(name)): value for name, value in given.items()}
    with quiet():
        found = fedllm.calibrate(
            epsilon=epsilon,
            relation=str(relation),
            accountant=str(accountant),
            copies=copies,
            **known,
        )
    result = {
        "noise_multiplier": found.noise_multiplier,
        "epsilon": found.epsilon,
        "delta": found.delta,
        "accountant": found.accountant,
        "bound": True,
        "target_epsilon": epsilon,
        "solve_for": str(solve_for),
        "steps": found.steps,
        "sample_rate": found.sampling_rate,
        "copies": copies,
        "unit": str(unit),
        "relation": str(relation),
        "adversary": str(against),
        "assumes": assumes(Unit(unit), Relation(relation), against),
    }
    if as_json:
        print_json(result)
        return
    table = make_table("quantity", "value")
    printed = {  # rounded towards more privacy: the printed schedule keeps to the target as well
        "noise multiplier": rounded(found.noise_multiplier, 6, math.ceil),
        "sample rate": rounded(found.sampling_rate, 6, math.floor),
        "steps": f"{found.steps}",
        "epsilon": f"{epsilon_text(found.epsilon)} ({BOUND}; target {epsilon:g})",
        "delta": rounded(found.delta, 6, math.ceil),
        "accountant": accountant.upper(),
        "unit": str(unit),
        "relation": str(relation),
        "adversary": str(against),
    }
    if copies > 1:
        printed["copies of the record"] = f"{copies}, removed together"
    for quantity, text in printed.items():
        table.add_row(quantity, text)
    solved = str(solve_for).replace("-", " ")
    print_parts(f"Found: {solved}", table, f"Assumed: {result['assumes']}")
