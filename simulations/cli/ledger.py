"""Commands for a ledger: ``fedllm ledger verify``, ``show`` and ``adopt``."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from simulations.output import (
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
    help="Look at a ledger of privacy events, or go on deliberately with one that was restored or moved.",
    no_args_is_help=True,
    rich_markup_mode=None,
    cls=OneLineGroup,
)
LedgerPath = Annotated[Path, typer.Argument(help="A ledger file.", metavar="PATH")]


@app.command(cls=OneLineErrors)
def verify(
    path: LedgerPath,
    kept_head: Annotated[
        str | None, typer.Option(help="ROWS:HASH of a head that was kept elsewhere.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the chain of a ledger; exit status 1 where a row is missing or was edited."""
    number, colon, digest = (kept_head or "").partition(":")
    if kept_head is not None and not (colon and number.isdecimal() and len(digest) == 64):
        raise ValueError(f"Expected --kept-head ROWS:HASH (64 hex digits), got {kept_head}")
    from simulations.plans.accounting_figures import chain, verify_ledger

    found = verify_ledger(path, (int(number), digest) if kept_head else None)
    if as_json:
        print_json({"ledger": str(path), **chain(found)})
    elif found.ok:
        typer.echo(f"{path}: {found.rows} rows, the chain is whole")
        typer.echo(f"head, to be kept elsewhere: {found.head}")
    else:
        for problem in found.problems:
            typer.echo(f"{path}: {problem}")
    if not as_json:
        for line in [*found.adoptions, *found.notes]:
            typer.echo(f"{path}: {line}")
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
    """Print the rows of a ledger, and whether its chain is whole (``ledger verify`` says what is not)."""
    require("--limit", limit, limit >= 0, "a whole number >= 0")
    from fedllm.report.accounting import describe_event
    from privacy.events.serialization import event_to_json
    from privacy.ledger.ledger import Ledger, composed
    from simulations.plans.ledger import plan_content, plan_table

    with Ledger(path, read_only=True) as ledger:
        entries = ledger.entries(party=party, run=run)
        plans = ledger.plans(party=party, run=run)
        verified = ledger.verify()
    rows = entries[-limit:] if limit else entries
    if as_json:
        printed = [
            {"id": row.id, "time": row.time, **row.content(), "hash": row.hash}
            | {"details": dict(row.details)}
            | {"views": {str(a): json.loads(event_to_json(e)) for a, e in row.views.items()}}
            for row in rows
        ]
        found = {"ledger": str(path), "rows": len(entries), "entries": printed, "ok": verified.ok}
        print_json(
            found
            | {"adoptions": verified.adoptions}
            | {"plans": [plan_content(row) for row in plans]}
        )
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
    for line in verified.adoptions:
        typer.echo(line)
    if not verified.ok:
        typer.echo(f"the ledger FAILS its verification: {verified.problems[0]}")


@app.command(cls=OneLineErrors)
def adopt(
    path: LedgerPath,
    because: Annotated[str, typer.Option(help="Why, in a few words; it is recorded.")],
    kept: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file with a head of this ledger elsewhere, such as in a silo's state folder."
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROWS:HASH", help="A head that the server knows, and this ledger lacks."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a ledger that is refused as restored, copied, moved or lost; a row of it says why.

    What was released before and is not in this file is counted nowhere from now on: put back the file that was
    used last, if there is one.
    """
    from privacy.ledger.ledger import Adoption, Head, adopt_ledger

    adoption = Adoption(because, tuple(map(Head.parse, head or ())))
    found = adopt_ledger(path, adoption, kept or ())
    if as_json:
        print_json({"ledger": str(path), "rows": found.rows, "hash": found.hash})
    else:
        typer.echo(f"{path}: adopted, row {found.rows} says why; it goes on from there")
