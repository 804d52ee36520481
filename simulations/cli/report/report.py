"""``fedllm report``: rebuild a run's report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from simulations.output import AsJson


def report(
    path: Annotated[Path | None, typer.Argument(help="A run folder.", metavar="RUN")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of report.json and exit.")
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            help="Folder to write into; default: the run folder. A signed report is never overwritten.",
            metavar="FOLDER",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rebuild report.html and report.json from the ledger and the metrics.

    A damaged run is reported too: missing parts are listed on stderr and at the top of the report, and the exit
    status is 1.
    """
    if schema:
        from fedllm.report.schema import json_schema

        typer.echo(json.dumps(json_schema(), indent=2))
        return
    if path is None:
        raise ValueError("Expected RUN, a run folder; got none")
    import fedllm
    from fedllm.report.page.render import HTML, JSON

    found = fedllm.report(path, to)
    folder = (to or path).expanduser().resolve()
    if as_json:
        typer.echo((folder / JSON).read_text(encoding="utf-8"), nl=False)
    else:
        typer.echo(str(folder / HTML))
    for problem in found["problems"]:
        typer.echo(f"fedllm: missing or damaged: {problem}", err=True)
    for note in found["notes"]:
        typer.echo(f"fedllm: {note}", err=True)
    if found["problems"]:
        raise typer.Exit(1)
