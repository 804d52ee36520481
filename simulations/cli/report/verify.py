"""``fedllm verify``: verify a run's signature against its report and ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.report.node_keys import NodeKeys, trusted_keys
from simulations.output import AsJson, RunPath, print_json


def verify(
    path: RunPath,
    public_key: Annotated[
        Path | None,
        typer.Option(help="The signer's public key, PEM, obtained from a trusted source."),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="Path of the ledger if it was moved; for a deployed run, one silo's ledger."
        ),
    ] = None,
    node_keys: NodeKeys = None,
    as_json: AsJson = False,
) -> None:
    """Verify a run's signature against its report and its ledger or signed extracts; exit 1 on failure."""
    from fedllm.report.signature import load_public_key, verify_report

    trusted = None if public_key is None else load_public_key(public_key)
    found = verify_report(path, trusted, ledger, trusted_keys(path, node_keys))
    if as_json:
        checks = {c.name: {"ok": c.ok, "text": c.text} for c in found.checks}
        print_json(
            {
                "ok": found.ok,
                "checks": checks,
                "notes": list(found.notes),
                "statement": found.statement,
            }
        )
    else:
        for check in found.checks:
            typer.echo(f"{'holds' if check.ok else 'FAILS'}  {check.text}")
        for note in found.notes:
            typer.echo(f"note   {note}")
        if found.ok and found.statement is not None:
            typer.echo(f"signed: {found.statement['headline']}")
    if not found.ok:
        raise typer.Exit(1)
