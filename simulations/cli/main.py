"""The command line: ``fedllm``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedllm.run.folder import RunFolder, RunFolderError
from fedllm.settings.io import load_settings, to_toml
from simulations.cli import account as cli_accounting
from simulations.cli import deploy as cli_deploy
from simulations.cli import landscape as cli_landscape
from simulations.cli import noise as cli_noise
from simulations.cli import report as cli_report
from simulations.cli import sweep as cli_sweep
from simulations.output import AsJson, OneLineErrors, OneLineGroup, Overrides

app = typer.Typer(
    name="fedllm",
    help="Federated, differentially private prefix-tuning of language models.",
    no_args_is_help=True,
    add_completion=False,
    cls=OneLineGroup,
    suggest_commands=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunPath = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")]


@app.command(cls=OneLineErrors)
def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment's TOML file.")],
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option("--run", help="Folder of the run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate an experiment on this machine; prints a table and the path of the report."""
    from simulations.runner import prepare

    settings = load_settings(experiment, overrides or [])
    prepare(settings)
    _train(RunFolder.create(settings, folder), as_json)


@app.command(cls=OneLineErrors)
def resume(path: RunPath, as_json: AsJson = False) -> None:
    """Go on with an interrupted run, to the same end as without the interruption."""
    folder = RunFolder.open(path)
    folder.require_current()
    state = folder.state()
    if state["status"] == "finished":
        raise RunFolderError(f"Expected an unfinished run, {path} is finished")
    _train(folder, as_json)


@app.command(cls=OneLineErrors)
def predict(
    path: Annotated[Path, typer.Argument(help="A run folder or an exported adapter.")],
    texts: Annotated[list[str], typer.Argument(help="Texts; `-` reads one a line from stdin.")],
    as_json: AsJson = False,
) -> None:
    """Use a trained model."""
    from fedllm.adapter.predict import Predictor

    if texts == ["-"]:
        texts = [line.rstrip("\n") for line in sys.stdin]
    answers = Predictor(path).predict(texts)
    if as_json:
        typer.echo(json.dumps(answers, ensure_ascii=False, indent=2))
        return
    for text, answer in zip(texts, answers, strict=True):
        if isinstance(answer, dict) and "label" in answer:
            sure = max(answer["probabilities"].values())
            typer.echo(f"{answer['label']:<12} {sure:.2f}  {text}")
        else:
            typer.echo(answer if isinstance(answer, str) else json.dumps(answer))


@app.command(cls=OneLineErrors)
def export(
    path: RunPath,
    target: Annotated[Path, typer.Argument(help="Folder to write.", metavar="DIR")],
) -> None:
    """Write the trained adapter with a model card that states the guarantee."""
    from fedllm.adapter.export import export_adapter

    exported = export_adapter(RunFolder.open(path), target)
    typer.echo(str(target))
    if exported.why_not_peft:
        typer.echo(f"no PEFT adapter: {exported.why_not_peft}", err=True)


@app.command(cls=OneLineErrors)
def settings(
    experiment: Annotated[Path | None, typer.Argument(help="A TOML file; empty: defaults.")] = None,
    overrides: Overrides = None,
) -> None:
    """Print all settings with what each means."""
    from fedllm.settings.experiment import Settings

    tree = load_settings(experiment, overrides or []) if experiment else Settings()
    typer.echo(to_toml(tree, documented=True))


cli_report.register(app)
cli_accounting.register(app)
cli_landscape.register(app)
cli_sweep.register(app)
cli_noise.register(app)
cli_deploy.register(app)


def _train(folder: RunFolder, as_json: bool) -> None:
    from simulations.live import LiveView
    from simulations.runner import simulate, succeeded

    console = Console(stderr=as_json)
    console.print(f"run folder: {folder.path}", highlight=False, soft_wrap=True)
    status = simulate(folder, [LiveView(folder.settings(), console)])
    state = folder.state()
    if as_json:
        last = [m for m in folder.metrics() if m["kind"] == "evaluation"][-1:]
        found: dict[str, Any] = {"run": str(folder.path), **state, "evaluation": last}
        typer.echo(json.dumps(found, indent=2))
    elif succeeded(status):
        _summary(folder, console)
    if status == "stopped":
        typer.echo(f"fedllm: the run stopped before its last round: {state['message']}", err=True)
    if status == "interrupted":
        console.print(f"interrupted after round {state['round']}; go on with:")
        console.print(f"  fedllm resume {folder.path}", highlight=False, soft_wrap=True)
        raise typer.Exit(130)
    if not succeeded(status):
        typer.echo(f"fedllm: the run {status}: {state['message']}", err=True)
        typer.echo(
            f"  fedllm resume {folder.path}   goes on after the last finished round", err=True
        )
        raise typer.Exit(1)


def _summary(folder: RunFolder, console: Console) -> None:
    """The last evaluation and what each silo spent, as tables, and where the report is."""
    from fedllm.report.plan_figures import SO_FAR
    from simulations.live import epsilon_label, target_text
    from simulations.plans.epsilons import planned_epsilons

    found = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    records = folder.metrics()
    table = Table(title="Model, judged on the server's own examples")
    shown = [r for r in records if r["kind"] == "evaluation" and r["where"] == "server"]
    columns = [
        name
        for name in ("loss", "accuracy", "macro_f1", "perplexity", "bleu", "rouge_l")
        if shown and name in shown[-1]
    ]
    for name in ("round", *columns):
        table.add_column(name, justify="right")
    for record in dict.fromkeys((0, len(shown) - 1) if shown else ()):
        row = shown[record]
        table.add_row(str(row["round"]), *(f"{row[name]:.4f}" for name in columns if name in row))
    console.print(table)
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
    console.print(f"report: {folder.path / 'report.html'}", highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point: errors about input are one line on stderr and exit status 2."""
    app()


if __name__ == "__main__":
    main()
