"""``fedllm account``: compute epsilon of a schedule or a ledger with every accountant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from simulations.cli.accounting.options import (
    APPROXIMATION,
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
    epsilon_text,
    make_table,
    print_json,
    print_parts,
    rounded,
)

_NAMES = {
    "pld": "PLD",
    "rdp": "RDP",
    "gdp_exact": "GDP exact",
    "gdp_dominating": "GDP dominating",
    "gdp_clt": "GDP-CLT",
}
_SHOWN_REASONS = 5


def account(
    delta: Delta = None,
    noise_multiplier: Noise = None,
    sample_rate: Rate = None,
    steps: Steps = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Ledger to account for, instead of a schedule.")
    ] = None,
    party: Annotated[
        str | None,
        typer.Option(
            help="One party of the ledger; default: the largest epsilon over all parties."
        ),
    ] = None,
    unit: Annotated[
        UnitName | None, typer.Option(help="Privacy unit; default: the ledger's, or example.")
    ] = None,
    relation: Annotated[
        RelationName | None,
        typer.Option(help="Neighbouring relation; default: the ledger's, or zero-out."),
    ] = None,
    adversary: Opponent = "server",
    copies: Copies = 1,
    parties: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated parties of the ledger that hold the same record; their events are composed."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute epsilon of a planned schedule or of a ledger with every accountant."""
    schedule = {
        "--noise-multiplier": noise_multiplier,
        "--sample-rate": sample_rate,
        "--steps": steps,
    }
    given = [name for name, value in schedule.items() if value is not None]
    if delta is None and ledger is None:
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


def _print_account(found: Mapping[str, Any]) -> None:
    """Print all figures of a schedule or a ledger with their unit, relation and adversary."""
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
    table = make_table("accountant", "epsilon", "meaning", "mu")
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
            "Noise of this ledger was drawn from a seed: there is no protection against anyone "
            "who knows or guesses the seed"
        )
    if parties:
        plans = found["plans"]
        held = plans_text(next(iter(plans.values()))) if len(parties) == 1 and plans else ""
        notes.append(
            f"These figures cover everything {found['meaning']}" + (f"; {held}" if held else "")
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
