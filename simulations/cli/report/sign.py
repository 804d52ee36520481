"""``fedllm sign``: sign a run's report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.report.node_keys import NodeKeys, trusted_keys
from simulations.output import AsJson, RunPath, print_json


def sign(
    path: RunPath,
    key: Annotated[Path, typer.Option(help="The signer's private key, PEM (see fedllm keygen).")],
    name: Annotated[str, typer.Option(help="Name of the signer.")] = "",
    role: Annotated[
        str, typer.Option(help="Role of the signer, such as data-protection officer.")
    ] = "",
    node_keys: NodeKeys = None,
    as_json: AsJson = False,
) -> None:
    """Sign a run's report and its ledger's head (or the silos' extracts); write report.sig.json."""
    from fedllm.report.signature import SIGNATURE, fingerprint, load_private_key, sign_report

    private = load_private_key(key)
    trusted = trusted_keys(path, node_keys)
    statement = sign_report(path, private, name=name, role=role, trusted=trusted)
    digest = fingerprint(private.public_key())
    if as_json:
        print_json({"file": str(path / SIGNATURE), "fingerprint": digest, "statement": statement})
        return
    typer.echo(statement["headline"])
    typer.echo(f"signed with the key {digest}: {path / SIGNATURE}")
