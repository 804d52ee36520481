"""``fedllm deploy approve``: manage the list of code bundles approved for a silo's data."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.deploy.silo.options import SiloOption
from simulations.output import AsJson, print_json, print_parts


def approve(
    bundle: Annotated[
        str | None,
        typer.Argument(
            metavar="[BUNDLE|HASH]",
            help="A bundle (.fab), an app folder, or a SHA-256 from a trusted source. Default: the installed "
            "code, as `deploy init` ships it.",
        ),
    ] = None,
    silo: SiloOption = None,
    note: Annotated[str, typer.Option(help="Note to store with the approval.")] = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Approve without confirmation if the code differs.")
    ] = False,
    revoke: Annotated[
        str | None, typer.Option(metavar="HASH", help="Remove a bundle from the list instead.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Print the list of approved bundles instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Approve a code bundle to run on this silo's data; print how it differs from the installed code."""
    from client.config import ENVIRONMENT, load_silo
    from client.executor import approval

    own = load_silo(silo or os.environ.get(ENVIRONMENT) or "silo.toml")
    if revoke is not None:
        approval.revoke(own.approved, revoke)
    elif not listed:
        digest, app = _look_at(bundle, yes)
        approval.approve(own.approved, digest, app=app, note=note)
    entries = list(approval.read_approved(own.approved).values())
    if as_json:
        print_json({"list": own.approved, "approved": [vars(entry) for entry in entries]})
        return
    if not entries:
        print_parts(f"no bundle is approved in {own.approved}: none runs")
    for entry in entries:  # a digest to a line: it is compared, copied, and given to --revoke
        about = (entry.app, entry.time and f"approved {entry.time}", entry.note)
        print_parts(entry.sha256, *(f"    {text}" for text in about if text))


def _look_at(bundle: str | None, yes: bool) -> tuple[str, str]:
    """Return the digest and name of a bundle; ask for confirmation if its code differs from the installed code."""
    from client.executor import approval

    data = _bytes_of(bundle)
    if data is None:
        return str(bundle), ""
    found = approval.differences(data)
    name = approval.app_name(data)
    if not found:
        typer.echo(f"{name}: its code equals the installed code", err=True)
    else:
        typer.echo(f"{name}: its code differs from the installed code:", err=True)
        for line in found:
            typer.echo(f"  {line}", err=True)
        if not yes and not typer.confirm("Run this code on the silo's data?", err=True):
            raise typer.Exit(1)
    return approval.digest_of(data), name


def _bytes_of(bundle: str | None) -> bytes | None:
    """Return the bundle's bytes, or None if only a digest is given."""
    from server.deployment.app_bundle import bundle as bundle_of
    from server.deployment.app_bundle import make_app

    if bundle is None:
        with tempfile.TemporaryDirectory() as folder:
            make_app(Path(folder) / "app")
            return bundle_of(Path(folder) / "app")
    path = Path(bundle)
    if path.is_dir():
        return bundle_of(path)
    return path.read_bytes() if path.is_file() else None
