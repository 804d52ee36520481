"""Commands that look at a ledger: ``fedllm ledger verify`` and ``fedllm ledger show``."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from simulations.cli_output import (
    AsJson,
    OneLineErrors,
    OneLineGroup,
    make_table,
    print_json,
    print_parts,
    require,
)

# torch and dp_accounting take seconds to load: privacy and what uses it are imported by commands.
app = typer.Typer(
    name="ledger",
    help="Look at a ledger of privacy events.",
    no_args_is_help=True,
    rich_markup_mode=None,
    cls=OneLineGroup,
)
LedgerPath = Annotated[Path, typer.Argument(help="A ledger file.", metavar="PATH")]


@app.command(cls=OneLineErrors)
def verify(
    path: LedgerPath,
    kept_head: Annotated[
        str | None, typer.Option(help="ID:HASH of a last row that was kept elsewhere.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the chain of a ledger; exit status 1 where a row is missing or was edited."""
    number, colon, digest = (kept_head or "").partition(":")
    if kept_head is not None and not (colon and number.isdecimal() and len(digest) == 64):
        raise ValueError(f"Expected --kept-head ID:HASH (64 hex digits), got {kept_head}")
    from simulations.accounting_figures import chain, verify_ledger

    found = verify_ledger(path, (int(number), digest) if kept_head else None)
    if as_json:
        print_json({"ledger": str(path), **chain(found)})
    elif found.ok:
        typer.echo(f"{path}: {found.rows} rows, the chain is whole")
        typer.echo(f"head, to be kept elsewhere: {found.head[0]}:{found.head[1]}")
    else:
        for problem in found.problems:
            typer.echo(f"{path}: {problem}")
    if not found.ok:
        raise typer.Exit(1)


@app.command(cls=OneLineErrors)
def show(
    path: LedgerPath,
    party: Annotated[str | None, typer.Option(help="One party only.")] = None,
    run: Annotated[str | None, typer.Option(help="One run only.")] = None,
    limit: Annotated[int, typer.Option(help="Only the last rows; 0 for all.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Print the rows of a ledger. The chain is not checked: that is ``ledger verify``."""
    require("--limit", limit, limit >= 0, "a whole number >= 0")
    from fedllm.report.accounting import describe_event
    from privacy.event_json import event_to_json
    from privacy.ledger import Ledger, composed
    from simulations.ledger_plans import plan_content, plan_table

    with Ledger(path, read_only=True) as ledger:
        entries = ledger.entries(party=party, run=run)
        plans = ledger.plans(party=party, run=run)
    rows = entries[-limit:] if limit else entries
    if as_json:
        printed = [
            {"id": row.id, "time": row.time, **row.content(), "hash": row.hash}
            | {"details": dict(row.details)}
            | {"views": {str(a): json.loads(event_to_json(e)) for a, e in row.views.items()}}
            for row in rows
        ]
        found = {"ledger": str(path), "rows": len(entries), "entries": printed}
        print_json(found | {"plans": [plan_content(row) for row in plans]})
        return
    table = make_table("row", "time", "release", "seen by: event")
    for row in rows:
        views: dict[str, list[str]] = defaultdict(list)
        for adversary in sorted(row.views):
            counts = composed([row], adversary).items()
            uses = "; ".join(
                describe_event(event) if count == 1 else f"{count} x {describe_event(event)}"
                for event, count in counts
            )
            views[uses or "nothing"].append(str(adversary))
        events = "\n".join(f"{', '.join(names)}: {uses}" for uses, names in views.items())
        release = f"{row.party}, {row.purpose}, round {row.round}, unit {row.unit}, run {row.run}"
        time = (row.time or "")[:19].replace("T", " ")
        table.add_row(*(Text(cell) for cell in (str(row.id), time, release, events)))
    print_parts(f"{len(entries)} rows of {path}", table)
    if plans:
        print_parts(*plan_table(plans[-limit:] if limit else plans))
    if len(rows) < len(entries):
        typer.echo(f"the last {len(rows)} of {len(entries)} rows; --limit 0 prints all")
