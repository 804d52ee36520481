"""``fedllm deploy approve``, ``doctor``: a silo's own side of a deployment, on its own machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from client.config import ENVIRONMENT, SiloFile, load_silo
from client.executor import approval
from simulations.output import AsJson, OneLineErrors, make_table, print_json, print_parts

SiloOption = Annotated[
    Path | None,
    typer.Option("--silo", help=f"The silo's own file; else ${ENVIRONMENT}, else ./silo.toml."),
]


def add(app: typer.Typer) -> None:
    """Add the commands to ``fedllm deploy``."""
    app.command(cls=OneLineErrors)(approve)
    app.command(cls=OneLineErrors)(doctor)


def find_silo(path: Path | None) -> SiloFile:
    """The silo config that a command means.

    Raises:
        SiloFileError: as :func:`client.config.load_silo`.
    """
    return load_silo(path or os.environ.get(ENVIRONMENT) or "silo.toml")


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
    own = find_silo(silo)
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


def doctor(
    silo: SiloOption = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", "-C", help="The node's folder (node.toml); else here, if it is one."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what this machine has for a node, and what is missing; exit status 1 where something is."""
    from simulations.cli.doctor import examine

    place = folder or (Path.cwd() if Path("node.toml").is_file() else None)
    given = silo or (Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None)
    if given is None and place is None and Path("silo.toml").is_file():
        given = Path("silo.toml")
    found = examine(given, place)
    missing = [finding for finding in found if not finding.good]
    if as_json:
        print_json({"ok": not missing, "findings": [vars(finding) for finding in found]})
    else:
        table = make_table("", "what", "found")
        for finding in found:
            table.add_row("ok" if finding.good else "MISSING", finding.what, finding.text)
        print_parts(table, f"{len(missing)} missing" if missing else "nothing is missing")
    if missing:
        raise typer.Exit(1)


def _look_at(bundle: str | None, yes: bool) -> tuple[str, str]:
    """Digest and name of what is to be approved; asks where its code is not the installed one's."""
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
    import tempfile

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
