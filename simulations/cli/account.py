"""Commands that account for privacy: ``fedllm calibrate`` and ``fedllm account``.

Numbers come from :mod:`privacy`; here options are checked and results are printed, each epsilon
with its unit, neighbouring relation, adversary and accountant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from simulations.cli import ledger as cli_ledger
from simulations.cli import lmo as cli_lmo
from simulations.cli.plan import calibrate_experiment
from simulations.output import (
    AsJson,
    OneLineErrors,
    Overrides,
    epsilon_text,
    make_table,
    print_json,
    print_parts,
    require,
    rounded,
)

# torch and dp_accounting take seconds to load: privacy and what uses it are imported by commands.
APPROXIMATION = "approximation, not a bound"
BOUND = "upper bound"
_NAMES = {
    "pld": "PLD",
    "rdp": "RDP",
    "gdp_exact": "GDP exact",
    "gdp_dominating": "GDP dominating",
    "gdp_clt": "GDP-CLT",
}
_SHOWN_REASONS = 5


class RelationName(StrEnum):
    """Neighbouring relations, as options."""

    ZERO_OUT = "zero-out"
    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    REPLACE_ONE = "replace-one"


class UnitName(StrEnum):
    """Privacy units, as options."""

    EXAMPLE = "example"
    CLIENT = "client"


class AccountantName(StrEnum):
    """Accountants to calibrate by: bounds only."""

    PLD = "pld"
    RDP = "rdp"


class Unknown(StrEnum):
    """What calibration can solve for."""

    NOISE_MULTIPLIER = "noise-multiplier"
    STEPS = "steps"
    SAMPLE_RATE = "sample-rate"
    DELTA = "delta"


def register(app: typer.Typer) -> None:
    """Add the commands to ``fedllm``."""
    app.command(cls=OneLineErrors)(calibrate)
    app.command(cls=OneLineErrors)(account)
    app.add_typer(cli_ledger.app)
    cli_lmo.register(app)


Delta = Annotated[float | None, typer.Option(help="Delta, above 0 and below 1; else the ledger's.")]
Rate = Annotated[float | None, typer.Option(help="Probability of each record to be in a step.")]
Steps = Annotated[int | None, typer.Option(help="Number of DP-SGD steps.")]
Noise = Annotated[
    float | None, typer.Option(help="Standard deviation of the noise over the clipping norm.")
]
Copies = Annotated[
    int,
    typer.Option(
        help="How often a record is in one party's data: the cost of all its copies together."
    ),
]
Opponent = Annotated[
    str, typer.Option(help="Against whom: outsider, server (sees every message), or colluding:m.")
]


def calibrate(
    ctx: typer.Context,
    experiment: Annotated[
        Path | None,
        typer.Argument(help="An experiment's TOML file, in place of --epsilon and a schedule."),
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Target epsilon.")] = None,
    delta: Delta = None,
    sample_rate: Rate = None,
    steps: Steps = None,
    noise_multiplier: Noise = None,
    solve_for: Annotated[
        Unknown, typer.Option(help="What to find; the others are given.")
    ] = Unknown.NOISE_MULTIPLIER,
    relation: Annotated[
        RelationName,
        typer.Option(
            help="Neighbouring relation; add-or-remove-one needs a secret number of records."
        ),
    ] = RelationName.ZERO_OUT,
    accountant: Annotated[
        AccountantName, typer.Option(help="Who measures epsilon.")
    ] = AccountantName.PLD,
    unit: Annotated[
        UnitName, typer.Option(help="What is sampled and protected.")
    ] = UnitName.EXAMPLE,
    adversary: Opponent = "server",
    copies: Copies = 1,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Find the noise (or steps, sampling rate, delta) of DP-SGD that keeps to a target epsilon.

    Of an experiment: each silo's own noise, before any training (the model is not loaded).
    """
    if experiment is not None:
        calibrate_experiment(ctx, experiment, overrides or [], as_json)
        return
    if overrides:
        raise ValueError("Expected --set with an experiment only, got no experiment")
    if epsilon is None:
        raise ValueError("Expected --epsilon, or an experiment's TOML file; got neither")
    given = {
        Unknown.NOISE_MULTIPLIER: _noise(noise_multiplier),
        Unknown.STEPS: _steps(steps),
        Unknown.SAMPLE_RATE: _rate(sample_rate),
        Unknown.DELTA: _delta(delta),
    }
    if given.pop(solve_for) is not None:
        raise ValueError(
            f"Expected no --{solve_for} with --solve-for {solve_for}: it is what is solved for"
        )
    for name, value in given.items():
        if value is None:
            raise ValueError(f"Expected --{name} with --solve-for {solve_for}, got none")
    least = epsilon >= 0 if solve_for is Unknown.DELTA else epsilon > 0
    require("--epsilon", epsilon, least and math.isfinite(epsilon), "a finite number > 0")
    from privacy import calibration
    from privacy.guarantee import Adversary, Relation, Unit
    from simulations.plans.accounting_figures import assumes, quiet

    against = Adversary(adversary)
    solve: Any = {
        Unknown.NOISE_MULTIPLIER: calibration.calibrate_noise_multiplier,
        Unknown.STEPS: calibration.calibrate_steps,
        Unknown.SAMPLE_RATE: calibration.calibrate_sampling_rate,
        Unknown.DELTA: calibration.calibrate_delta,
    }[solve_for]
    names = {Unknown.SAMPLE_RATE: "sampling_rate", Unknown.NOISE_MULTIPLIER: "noise_multiplier"}
    known = {names.get(name, str(name)): value for name, value in given.items()}
    with quiet():
        found = solve(
            epsilon=epsilon,
            relation=Relation(relation),
            accountant=str(accountant),
            copies=_copies(copies),
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


def account(
    delta: Delta = None,
    noise_multiplier: Noise = None,
    sample_rate: Rate = None,
    steps: Steps = None,
    ledger: Annotated[Path | None, typer.Option(help="A ledger, in place of a schedule.")] = None,
    party: Annotated[
        str | None, typer.Option(help="One party of the ledger; else the largest epsilon of all.")
    ] = None,
    unit: Annotated[
        UnitName | None, typer.Option(help="Privacy unit; else the ledger's, or example.")
    ] = None,
    relation: Annotated[
        RelationName | None,
        typer.Option(help="Neighbouring relation; else the ledger's, or zero-out."),
    ] = None,
    adversary: Opponent = "server",
    copies: Copies = 1,
    parties: Annotated[
        str | None,
        typer.Option(
            help="Parties of the ledger, by commas, that hold the same record: the sum of their events."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a planned schedule, or all that a ledger holds, costs by every accountant."""
    schedule = {
        "--noise-multiplier": _noise(noise_multiplier),
        "--sample-rate": _rate(sample_rate),
        "--steps": _steps(steps),
    }
    given = [name for name, value in schedule.items() if value is not None]
    if _delta(delta) is None and ledger is None:
        raise ValueError("Expected --delta above 0 and below 1, got none")
    if ledger is not None and given:
        raise ValueError(f"Expected --ledger or a schedule, got --ledger with {', '.join(given)}")
    if ledger is None and len(given) < len(schedule):
        missing = ", ".join(name for name in schedule if name not in given)
        raise ValueError(f"Expected --ledger or all of {', '.join(schedule)}; missing: {missing}")
    if ledger is None and party is not None:
        raise ValueError(f"Expected --party with --ledger only, got --party={party}")
    if parties is not None and (ledger is None or party is not None):
        raise ValueError(
            f"Expected --parties with --ledger and without --party, got --parties={parties}"
        )
    together = [] if parties is None else [name.strip() for name in parties.split(",")]
    _copies(copies)
    from privacy.guarantee import Adversary, Relation, Unit
    from simulations.plans.accounting_figures import account_ledger, account_schedule, quiet

    against = Adversary(adversary)
    with quiet():
        if ledger is not None:
            found = account_ledger(
                ledger,
                party=party,
                unit=None if unit is None else Unit(unit),
                relation=None if relation is None else Relation(relation),
                adversary=against,
                delta=delta,
                together=together,
                copies=copies,
            )
        else:
            found = account_schedule(
                noise_multiplier=noise_multiplier or 0,
                sample_rate=sample_rate or 0,
                steps=steps or 0,
                delta=delta or 0,
                unit=Unit(unit or "example"),
                relation=Relation(relation or "zero-out"),
                adversary=against,
                copies=copies,
            )
    if as_json:
        print_json(found)
    else:
        _print_account(found)
    if not found.get("chain", {}).get("ok", True):
        raise typer.Exit(1)


# -- options -----------------------------------------------------------------------------------


def _delta(delta: float | None) -> float | None:
    if delta is not None:
        require("--delta", delta, 0 < delta < 1, "a number above 0 and below 1")
    return delta


def _rate(rate: float | None) -> float | None:
    if rate is not None:
        require("--sample-rate", rate, 0 < rate <= 1, "a number above 0 and at most 1")
    return rate


def _steps(steps: int | None) -> int | None:
    if steps is not None:
        require("--steps", steps, steps >= 1, "a whole number >= 1")
    return steps


def _copies(copies: int) -> int:
    from privacy.copies import MOST

    require("--copies", copies, 1 <= copies <= MOST, f"a whole number from 1 to {MOST}")
    return copies


def _noise(noise: float | None) -> float | None:
    if noise is not None:
        good = noise > 0 and math.isfinite(noise)
        require("--noise-multiplier", noise, good, "a finite number > 0")
    return noise


# -- printing ----------------------------------------------------------------------------------


def _print_account(found: Mapping[str, Any]) -> None:
    """All figures of a schedule or of a ledger, each with all that it needs to mean something."""
    named = (
        f"delta = {found['delta']:g}; unit: {found['unit']}; relation: {found['relation']}; "
        f"adversary: {found['adversary']}"
    )
    if found.get("copies", 1) > 1:
        named += f"; all {found['copies']} copies of a record together"
    from fedllm.report.plan_figures import plans_text

    parties = found.get("parties", {})
    title = f"Epsilon at {named}"
    if len(parties) > 1:
        title += f"; the largest of {len(parties)} parties"
    elif parties:
        title += f"; party: {next(iter(parties))}"
    table = make_table("accountant", "epsilon", "what it is", "mu")
    notes = []
    for key, name in _NAMES.items():
        figure = found.get(key)
        if figure is None:
            continue
        kind = BOUND if figure["bound"] else APPROXIMATION
        if figure["epsilon"] == math.inf:
            kind = "no guarantee" if "no_guarantee" in found else "no finite number"
        mu = rounded(figure["mu"], 5, math.ceil) if "mu" in figure else "-"
        if figure["epsilon"] is None:
            notes.append(figure["unsupported"])
            table.add_row(name, "none", "no number: see below", "-")
        else:
            table.add_row(name, epsilon_text(figure["epsilon"]), kind, mu)
        if figure.get("delta_floor"):
            notes.append(f"The dominating mu holds for every delta above {figure['delta_floor']:g}")
    lost = found.get("no_guarantee", [])
    notes += [f"NO GUARANTEE: {reason}" for reason in lost[:_SHOWN_REASONS]]
    if len(lost) > _SHOWN_REASONS:
        notes.append(f"and {len(lost) - _SHOWN_REASONS} more reasons: --json prints all")
    if "assumes" in found:
        notes.append(f"Assumed: {found['assumes']}")
    if found.get("seeded_noise"):
        notes.append(
            "Noise of this ledger was drawn from a seed: against whoever knows or guesses the "
            "seed there is no protection"
        )
    if parties:
        plans = found["plans"]
        held = plans_text(next(iter(plans.values()))) if len(parties) == 1 and plans else ""
        notes.append(
            f"These figures are of what was {found['meaning']}" + (f"; {held}" if held else "")
        )
    notes += found.get("notes", [])
    chain = found.get("chain", {"ok": True})
    if chain["ok"] and not parties and "ledger" in found:
        notes.append("The ledger is empty: nothing was released")
    print_parts(title, table, *notes)
    if len(parties) > 1:
        each = make_table("party", "rows", "epsilon", "by plan")
        for name, figures in parties.items():
            epsilon = figures["pld"]["epsilon"]
            shown = "none" if epsilon is None else epsilon_text(epsilon)
            held = plans_text(found["plans"].get(name, {})) or "no plan"
            each.add_row(Text(name), str(figures["rows"]), shown, Text(held))
        print_parts(f"Epsilon by party ({BOUND} by PLD) at {named}", each)
