"""``fedllm deploy status``: show nodes, runs and warnings."""

from __future__ import annotations

from pathlib import Path

import typer

from simulations.cli.deploy.options import FolderOption
from simulations.output import AsJson, print_json


def status(folder: FolderOption = None, as_json: AsJson = False) -> None:
    """Show nodes, runs and warnings."""
    from server.deployment import control
    from simulations.cli.deploy.operator.shared import home_folder, local_runs, run_row

    home = home_folder(folder)
    with control.connect(home) as link:
        nodes, runs = link.nodes(), link.runs()
    local = local_runs(home)
    rows = [run_row(run, local) for run in runs]
    warnings = _warnings(home)
    if as_json:
        shown = [
            {"name": n.name, "id": str(n.node_id), "status": n.status, "since": n.since}
            for n in nodes
        ]
        print_json({"nodes": shown, "runs": rows, "warnings": warnings})
        return
    typer.echo("nodes:")
    _columns([(n.name, n.status, n.since[:19].replace("T", " ")) for n in nodes])
    typer.echo("runs:")
    _columns([(r["run"], r["status"], f"round {r['round']}", f"id {r['id']}") for r in rows])
    for row in rows[-1:]:
        if row["message"]:
            typer.echo(f"    {row['message']}")
    for line in warnings:
        typer.echo(f"warning: {line}")


def _warnings(home: Path) -> list[str]:
    from server.deployment import certificates
    from server.deployment.folder import OPERATOR, DeploymentError, Folder

    if (home / OPERATOR).is_file():
        shown = home / "operator.pem"
        pairs = [(home / "ca.pem", shown)] if shown.exists() else []
    else:
        place = Folder(home)
        pairs = [(place.ca, place.server_certificate)]
    lines = []
    for authority, certificate in pairs:
        try:
            lines += certificates.check(authority, certificate)
        except DeploymentError as error:
            lines.append(str(error))
    return lines


def _columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows or [("none",)]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths or [0], strict=True))
        typer.echo(f"  {'  '.join(cells)}".rstrip())
