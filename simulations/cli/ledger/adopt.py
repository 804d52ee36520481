"""``fedllm ledger adopt``: accept a ledger that was restored or moved, and record why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.output import AsJson, LedgerPath, print_json


def adopt(
    path: LedgerPath,
    because: Annotated[
        str, typer.Option(help="Reason, in a few words; it is recorded in the ledger.")
    ],
    kept: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file outside the ledger that holds a head of it, such as in a silo's state folder. May be "
            "repeated."
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROWS:HASH",
            help="A head that the server knows and this ledger lacks. May be repeated.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Accept a ledger that is refused as restored, copied, moved or lost; record the reason in a row.

    Releases that are missing from this file are no longer counted anywhere: if the file that was used last still
    exists, restore it instead.
    """
    from privacy.ledger.ledger import Adoption, Head, adopt_ledger

    adoption = Adoption(because, tuple(map(Head.parse, head or ())))
    found = adopt_ledger(path, adoption, kept or ())
    if as_json:
        print_json({"ledger": str(path), "rows": found.rows, "hash": found.hash})
    else:
        typer.echo(f"{path}: adopted; row {found.rows} records the reason")
