"""``fedllm deploy approve``: the bundles of code that may run on a silo's data."""

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
            help="A bundle (.fab), an app's folder, or a SHA-256 that you were told and trust. "
            "Without: what is installed here, as `deploy init` ships it.",
        ),
    ] = None,
    silo: SiloOption = None,
    note: Annotated[str, typer.Option(help="A few words for the list.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask where the code differs.")] = False,
    revoke: Annotated[
        str | None, typer.Option(metavar="HASH", help="Take a bundle off the list instead.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the list instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Allow a bundle of code to run on this silo's data; tell how it differs from what is installed."""
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
    """Digest and name of what is to be approved; asks where its code is not the installed one's."""
    from client.executor import approval

    data = _bytes_of(bundle)
    if data is None:
        return str(bundle), ""
    found = approval.differences(data)
    name = approval.app_name(data)
    if not found:
        typer.echo(f"{name}: its code is what is installed here", err=True)
    else:
        typer.echo(f"{name}: its code differs from what is installed here:", err=True)
        for line in found:
            typer.echo(f"  {line}", err=True)
        if not yes and not typer.confirm("Run this code on the silo's data?", err=True):
            raise typer.Exit(1)
    return approval.digest_of(data), name


def _bytes_of(bundle: str | None) -> bytes | None:
    """The bundle's bytes; None where only a digest is given."""
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
