"""Helpers of the commands about a deployment's runs: find, start and follow a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from fedllm.run.folder import RunFolder, RunFolderError
from server.deployment.app_bundle import bundle_hash
from server.deployment.control import COMPLETED, Control, RunState
from server.deployment.folder import OPERATOR, DeploymentError, find_folder


def start(link: Control, home: Path, code: bytes, config: dict[str, str], detach: bool) -> None:
    """Start a run and, unless detached, follow it to its end; exit 1 if it fails."""
    run_id = link.start(code, config)
    typer.echo(f"run {Path(config['run-folder']).name}, Flower's id {run_id}")
    typer.echo(f"app {bundle_hash(code)}; waits for {config['silos'].replace(',', ', ')}")
    if detach:
        return
    try:
        for piece in _followed(link, run_id):
            typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        typer.echo(f"the run continues; `fedllm deploy stop {run_id}` stops it", err=True)
        raise typer.Exit(130) from None
    found = link.runs(run_id)[0]
    row = run_row(found, local_runs(home))
    typer.echo(f"{row['run']}: {found.status}, round {row['round']}. {row['message']}".rstrip())
    if found.status != COMPLETED:
        if not row["message"]:
            typer.echo(f"fedllm: {found.details}", err=True)
        typer.echo(f"  fedllm deploy resume {row['run']}   resumes it", err=True)
        raise typer.Exit(1)


def _followed(link: Control, run_id: int) -> Iterator[str]:
    """Yield the log until the run ends, also across a restart of the SuperLink."""
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


def folder_name(runs: list[RunState], run: str) -> str:
    """Return the folder of the run with this Flower id, or the given name."""
    by_id = [r.folder for r in runs if str(r.run_id) == run and r.folder]
    return by_id[0] if by_id else run


def find_run(link: Control, run: str | None) -> RunState:
    """Return the named run, or the last one."""
    runs = link.runs()
    if run is None:
        if not runs:
            raise DeploymentError("Expected a run, the SuperLink knows none")
        return runs[-1]
    chosen = [r for r in runs if str(r.run_id) == run or Path(r.folder).name == Path(run).name]
    if not chosen:
        known = ", ".join(dict.fromkeys(name_of(r) for r in runs)) or "none"
        raise DeploymentError(f"Expected a run that the SuperLink knows ({known}), got {run}")
    return chosen[-1]


def name_of(run: RunState) -> str:
    """Return a run's name: its folder's, or Flower's id."""
    return Path(run.folder).name or str(run.run_id)


def local_runs(home: Path) -> dict[str, dict[str, Any]]:
    """Return the states of the run folders that are on this machine."""
    found = {}
    for path in sorted((home / "runs").glob("*/state.json")):
        try:
            found[path.parent.name] = RunFolder.open(path.parent).state()
        except RunFolderError as error:
            found[path.parent.name] = {"round": "?", "rounds": "?", "message": str(error)}
    return found


def run_row(run: RunState, local: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the displayed fields of a run."""
    state = local.get(Path(run.folder).name, {})
    return {
        "run": name_of(run),
        "id": str(run.run_id),
        "status": run.status,
        "round": f"{state['round']} of {state['rounds']}" if state else "?",
        "message": state.get("message", "") if run.over else "",
        "details": run.details,
        "app": run.app,
    }


def home_folder(folder: Path | None) -> Path:
    """Return the deployment's folder, or the operator's part of it."""
    try:
        return find_folder(folder, OPERATOR)
    except DeploymentError:
        return find_folder(folder)


def split_names(names: str) -> list[str]:
    """Split names at commas."""
    return [name.strip() for name in names.split(",") if name.strip()]
