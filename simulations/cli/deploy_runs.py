"""``fedllm deploy``: submit, status, logs, stop, resume."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fedllm.run.folder import RunFolder, RunFolderError
from fedllm.settings.io import load_settings, to_json
from server.deployment import certificates, control
from server.deployment.app_bundle import bundle, bundle_hash
from server.deployment.control import COMPLETED, Control, RunState
from server.deployment.folder import (
    DEPLOYMENT,
    ENVIRONMENT,
    OPERATOR,
    DeploymentError,
    Folder,
    find_folder,
)
from simulations.output import (
    AsJson,
    OneLineErrors,
    Overrides,
    print_json,
)

FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder", "-C", help=f"The deployment's folder; else ${ENVIRONMENT}, else here."
    ),
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name or folder, or Flower's id of it.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Return at once; do not follow the run.")]
LOGS = ("superlink", "superexec", "proxy", "proxy-access", "proxy-error")


def register(app: typer.Typer) -> None:
    """Add the commands to ``fedllm deploy``."""
    for command in (submit, status, logs, stop, resume):
        app.command(cls=OneLineErrors)(command)


def submit(
    experiment: Annotated[Path, typer.Argument(help="The experiment's TOML file.")],
    overrides: Overrides = None,
    folder: FolderOption = None,
    silos: Annotated[
        str, typer.Option(help="Silos to wait for, separated by commas; else all nodes.")
    ] = "",
    detach: Detach = False,
) -> None:
    """Start an experiment on the nodes and follow it; the exit status tells how it ended."""
    settings = load_settings(experiment, overrides or [])
    home = _home(folder)
    code = bundle(home / "app")
    with control.connect(home) as link:
        known = [node.name for node in link.nodes()]
        expected = _split(silos) or known
        if not expected:
            raise DeploymentError("Expected a node, none is registered: `fedllm deploy add-node`")
        if unknown := [name for name in expected if name not in known]:
            raise DeploymentError(
                f"Expected --silos to name nodes ({', '.join(known)}), got {', '.join(unknown)}"
            )
        stem = f"{settings.name}-{datetime.now():%Y%m%d-%H%M%S}"
        config = {
            "settings": to_json(settings),
            "run-folder": f"runs/{stem}",
            "silos": ",".join(expected),
        }
        _start(link, home, code, config, detach)


def resume(
    run: RunName,
    folder: FolderOption = None,
    without: Annotated[str, typer.Option(help="Silos to go on without, separated by commas.")] = "",
    detach: Detach = False,
) -> None:
    """Go on with a run that failed or was stopped, after its last finished round."""
    home = _home(folder)
    code = bundle(home / "app")
    with control.connect(home) as link:
        place, expected = _to_resume(link, home, run)
        left_out = _split(without)
        if unknown := [name for name in left_out if name not in expected]:
            raise DeploymentError(
                f"Expected --without to name silos of the run ({', '.join(expected)}), "
                f"got {', '.join(unknown)}"
            )
        chosen = [name for name in expected if name not in left_out]
        _start(link, home, code, {"run-folder": place, "silos": ",".join(chosen)}, detach)


def status(folder: FolderOption = None, as_json: AsJson = False) -> None:
    """Show the nodes, the runs, and what needs attention."""
    home = _home(folder)
    with control.connect(home) as link:
        nodes, runs = link.nodes(), link.runs()
    local = _local_runs(home)
    rows = [_run_row(run, local) for run in runs]
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


def logs(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run; else the last one.")
    ] = None,
    folder: FolderOption = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run is over.")] = False,
    of: Annotated[
        str | None, typer.Option("--of", help=f"A program's log instead: {', '.join(LOGS)}.")
    ] = None,
    lines: Annotated[int, typer.Option(help="--of: number of last lines.")] = 50,
) -> None:
    """Print a run's log, or a server program's."""
    home = _home(folder)
    if of is not None:
        _print_tail(home, of, lines)
        return
    with control.connect(home) as link:
        chosen = _find(link, run)
        for piece in link.log(chosen.run_id, follow=follow):
            typer.echo(piece, nl=False)


def stop(run: RunName, folder: FolderOption = None) -> None:
    """Stop a run; `resume` goes on after its last finished round."""
    with control.connect(_home(folder)) as link:
        chosen = _find(link, run)
        if chosen.over:
            raise DeploymentError(f"Expected a run in progress, {_name(chosen)} is {chosen.status}")
        link.stop(chosen.run_id)
        typer.echo(f"{_name(chosen)} is stopped")


def _start(link: Control, home: Path, code: bytes, config: dict[str, str], detach: bool) -> None:
    run_id = link.start(code, config)
    typer.echo(f"run {Path(config['run-folder']).name}, Flower's id {run_id}")
    typer.echo(f"app {bundle_hash(code)}; waits for {config['silos'].replace(',', ', ')}")
    if detach:
        return
    try:
        for piece in _followed(link, run_id):
            typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        typer.echo(f"the run goes on; `fedllm deploy stop {run_id}` stops it", err=True)
        raise typer.Exit(130) from None
    found = link.runs(run_id)[0]
    row = _run_row(found, _local_runs(home))
    typer.echo(f"{row['run']}: {found.status}, round {row['round']}. {row['message']}".rstrip())
    if found.status != COMPLETED:
        if not row["message"]:
            typer.echo(f"fedllm: {found.details}", err=True)
        typer.echo(f"  fedllm deploy resume {row['run']}   goes on", err=True)
        raise typer.Exit(1)


def _followed(link: Control, run_id: int) -> Iterator[str]:
    """The log until the run is over, also across a restart of the SuperLink."""
    shown, lost_since = 0, 0.0
    while True:
        try:
            done = 0
            for piece in link.log(run_id, follow=True):
                done += len(piece)
                if done > shown:
                    yield piece[max(0, len(piece) - (done - shown)) :]
                    shown = done
            if link.runs(run_id)[0].over:
                return
            lost_since = 0.0
        except DeploymentError:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > 120:
                raise
        time.sleep(2)


def _to_resume(link: Control, home: Path, run: str) -> tuple[str, list[str]]:
    """The run's folder as the server app is told it, and its silos."""
    runs = link.runs()
    if (home / DEPLOYMENT).is_file():
        path = (
            Path(run) if Path(run).is_dir() else home / "runs" / Path(_folder_name(runs, run)).name
        )
        found = RunFolder.open(path)
        found.require_current()
        if found.state()["status"] == "finished":
            raise RunFolderError(f"Expected an unfinished run, {path} is finished")
        place = str(found.path)
        schedule: Any = found.read_json("schedule.json", None)
        silos = schedule["silos"] if schedule else [node.name for node in link.nodes()]
    else:
        place = f"runs/{Path(_folder_name(runs, run)).name}"
        silos = [node.name for node in link.nodes()]
    live = [r for r in runs if not r.over and Path(r.folder).name == Path(place).name]
    if live:
        raise DeploymentError(
            f"Expected a run that is over, {_name(live[0])} is {live[0].status} "
            f"(Flower's id {live[0].run_id})"
        )
    return place, silos


def _folder_name(runs: list[RunState], run: str) -> str:
    by_id = [r.folder for r in runs if str(r.run_id) == run and r.folder]
    return by_id[0] if by_id else run


def _find(link: Control, run: str | None) -> RunState:
    runs = link.runs()
    if run is None:
        if not runs:
            raise DeploymentError("Expected a run, the SuperLink knows none")
        return runs[-1]
    chosen = [r for r in runs if str(r.run_id) == run or Path(r.folder).name == Path(run).name]
    if not chosen:
        known = ", ".join(dict.fromkeys(_name(r) for r in runs)) or "none"
        raise DeploymentError(f"Expected a run that the SuperLink knows ({known}), got {run}")
    return chosen[-1]


def _name(run: RunState) -> str:
    return Path(run.folder).name or str(run.run_id)


def _local_runs(home: Path) -> dict[str, dict[str, Any]]:
    """The states of the run folders, where they are on this machine."""
    found = {}
    for path in sorted((home / "runs").glob("*/state.json")):
        try:
            found[path.parent.name] = RunFolder.open(path.parent).state()
        except RunFolderError as error:
            found[path.parent.name] = {"round": "?", "rounds": "?", "message": str(error)}
    return found


def _run_row(run: RunState, local: dict[str, dict[str, Any]]) -> dict[str, Any]:
    state = local.get(Path(run.folder).name, {})
    return {
        "run": _name(run),
        "id": str(run.run_id),
        "status": run.status,
        "round": f"{state['round']} of {state['rounds']}" if state else "?",
        "message": state.get("message", "") if run.over else "",
        "details": run.details,
        "app": run.app,
    }


def _warnings(home: Path) -> list[str]:
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


def _print_tail(home: Path, of: str, lines: int) -> None:
    if of not in LOGS:
        raise DeploymentError(f"Expected --of to be one of {', '.join(LOGS)}, got {of}")
    path = home / "logs" / f"{of}.log"
    if not path.is_file():
        raise DeploymentError(f"Expected the log {path}, found none: has the server been started?")
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    typer.echo("\n".join(text[-lines:]))


def _home(folder: Path | None) -> Path:
    """The deployment's folder, or the operator's part of it."""
    try:
        return find_folder(folder, OPERATOR)
    except DeploymentError:
        return find_folder(folder)


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
