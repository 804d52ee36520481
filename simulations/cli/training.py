"""Output shared by ``fedllm run`` and ``fedllm resume``: the live view and the final tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fedllm.api import Watch
    from fedllm.run.folder import RunFolder


def view(as_json: bool) -> Watch:
    """Return the callback that shows a run while it trains: its folder, then the live view."""
    from fedllm.report.prose.evaluation_data import evaluation_data
    from simulations.live import LiveView

    def watch(folder: RunFolder) -> list[LiveView]:
        console = Console(stderr=as_json)
        settings = folder.settings()
        texts = evaluation_data(settings.data, settings.public, settings.evaluation)
        console.print(f"run folder: {folder.path}", highlight=False, soft_wrap=True)
        console.print(texts["sentence"], highlight=False, markup=False)
        return [LiveView(settings, console)]

    return watch


def finish(folder: RunFolder, as_json: bool) -> None:
    """Print the results of a finished run and raise its exit status."""
    from simulations.runner import succeeded

    console, state = Console(stderr=as_json), folder.state()
    status = state["status"]
    if as_json:
        last = [m for m in folder.metrics() if m["kind"] == "evaluation"][-1:]
        found: dict[str, Any] = {"run": str(folder.path), **state, "evaluation": last}
        typer.echo(json.dumps(found, indent=2))
    elif succeeded(status):
        summary(folder, console)
    if status == "stopped":
        typer.echo(f"fedllm: the run stopped before its last round: {state['message']}", err=True)
    if status == "interrupted":
        console.print(f"interrupted after round {state['round']}; resume with:")
        console.print(f"  fedllm resume {folder.path}", highlight=False, soft_wrap=True)
        raise typer.Exit(130)
    if not succeeded(status):
        typer.echo(f"fedllm: the run {status}: {state['message']}", err=True)
        typer.echo(
            f"  fedllm resume {folder.path}   resumes after the last finished round", err=True
        )
        raise typer.Exit(1)


def summary(folder: RunFolder, console: Console) -> None:
    """Print the last evaluation, each silo's spending and the path of the report."""
    from fedllm.metrics import SHOWN
    from fedllm.report.plan_figures import SO_FAR
    from simulations.live import epsilon_label, target_text
    from simulations.plans.epsilons import planned_epsilons

    found = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    records = folder.metrics()
    judges = {"server": "on the server's examples", "silos": "by the silos"}
    for where, title in judges.items():
        table = Table(title=f"Model, evaluated {title}")
        shown = [r for r in records if r["kind"] == "evaluation" and r["where"] == where]
        columns = [name for name in SHOWN if shown and name in shown[-1]]
        for name in ("round", *columns):
            table.add_column(name, justify="right")
        for record in dict.fromkeys((0, len(shown) - 1) if shown else ()):
            row = shown[record]
            table.add_row(
                str(row["round"]), *(f"{row[name]:.4f}" for name in columns if name in row)
            )
        if shown:
            console.print(table)
    if not any(record["kind"] == "evaluation" for record in records):
        console.print("The model was not evaluated: nobody has texts to evaluate on.")
    silos = folder.read_json("silos.json")
    title = epsilon_label(folder.settings(), len(silos))
    spent = Table(title=f"Epsilon by silo: {title}")
    for name in (
        "silo",
        "examples",
        "noise multiplier",
        "sampling rate",
        "released",
        "plan",
        "target",
    ):
        spent.add_column(name, justify="left" if name == "silo" else "right")
    last = {r["silo"]: r["epsilon"] for r in records if r["kind"] == "silo"}
    plans = planned_epsilons(folder, silos)
    for name, silo in silos.items():
        epsilon = last.get(name)
        spent.add_row(
            name,
            "private" if silo["examples"] is None else f"{silo['examples']:,}",
            "-" if not silo["noise_multiplier"] else f"{silo['noise_multiplier']:.4f}",
            "-" if silo["sampling_rate"] is None else f"{silo['sampling_rate']:.4f}",
            "-" if epsilon is None else f"{float(epsilon):.4f}",
            "-" if plans[name] is None else f"{plans[name]:.4f}",
            target_text(silo, folder.settings()),
        )
    console.print(spent)
    console.print(f"released: {SO_FAR}", highlight=False)
    console.print(found.get("headline", ""), highlight=False)
    texts = found.get("evaluation_data")
    if texts:
        console.print(texts["sentence"], highlight=False, markup=False)
    if found.get("strength"):
        console.print(found["strength"]["words"], highlight=False)
    console.print(f"report: {folder.path / 'report.html'}", highlight=False, soft_wrap=True)
