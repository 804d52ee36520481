"""``fedllm deploy doctor``: what a node's machine has and lacks."""

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
            "--folder", "-C", help="The node's folder (node.toml); else here, if it is one."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what this machine has for a node, and what is missing; exit status 1 where something is."""
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
