"""``fedllm ledger verify``: verify a ledger's hash chain."""

from __future__ import annotations

from typing import Annotated

import typer

from simulations.output import AsJson, LedgerPath, print_json


def verify(
    path: LedgerPath,
    kept_head: Annotated[
        str | None, typer.Option(help="Head of the ledger, recorded elsewhere, as ROWS:HASH.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify the hash chain of a ledger; exit 1 if a row is missing or was edited."""
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
