"""``fedllm deploy doctor``: check a node's machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.deploy.silo.options import SiloOption
from simulations.output import AsJson, make_table, print_json, print_parts


def doctor(
    silo: SiloOption = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            "-C",
            help="The node's folder (with node.toml); default: the current folder if it has one.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a node's machine for everything it needs; exit 1 if something is missing."""
    from client.config import ENVIRONMENT
    from simulations.cli.deploy.silo.examine import examine

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
