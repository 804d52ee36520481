"""``fedllm keygen``: generate a key pair for signing reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.output import AsJson, print_json


def keygen(
    path: Annotated[Path, typer.Argument(help="Path of the new private key.", metavar="KEY.pem")],
    as_json: AsJson = False,
) -> None:
    """Generate a key pair for signing reports: KEY.pem (secret) and KEY.pub.pem (to publish)."""
    from fedllm.report.signature import generate_key

    public, digest = generate_key(path)
    if as_json:
        print_json({"private_key": str(path), "public_key": str(public), "fingerprint": digest})
        return
    typer.echo(f"private key, mode 0600, not encrypted: {path}")
    typer.echo(f"public key: {public}")
    typer.echo(f"fingerprint: {digest}")
