"""``fedllm ledger show``: print a ledger's rows."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Annotated

import typer
from rich.text import Text

from simulations.output import AsJson, LedgerPath, make_table, print_json, print_parts, require


def show(
    path: LedgerPath,
    party: Annotated[str | None, typer.Option(help="Print this party's rows only.")] = None,
    run: Annotated[str | None, typer.Option(help="Print this run's rows only.")] = None,
    limit: Annotated[int, typer.Option(help="Number of last rows to print; 0 prints all.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Print the rows of a ledger and any break of its chain (``ledger verify`` lists all problems)."""
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
