"""``fedllm ledger adopt``: accept a ledger that was restored or moved, and record why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.output import AsJson, LedgerPath, print_json


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
