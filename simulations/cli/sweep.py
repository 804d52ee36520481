"""``fedllm sweep``: run an experiment's arms over epsilons, seeds and data sets, one run per trial."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from simulations.output import AsJson, make_table, print_json

if TYPE_CHECKING:
    from simulations.sweep.plan import Sweep, Trial


def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep's TOML file.", metavar="FILE")],
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Run this arm only. May be repeated.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List the runs and their remaining rounds without running them."
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of parallel runs; default: one per core.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            help="Folder for runs and results; default: the sweep's `folder`, or runs/sweep-NAME.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment's arms over epsilons, seeds and data sets, and compare them in one table.

    A stopped sweep resumes: finished runs are kept, others resume after their last round, and
    a changed file repeats only the runs it changes. Exit status 1 if a run failed, 130 after Ctrl-C.
    """
    from simulations.sweep.execute import clear_half_made, execute, worker_count
    from simulations.sweep.locks import locked
    from simulations.sweep.plan import load_sweep
    from simulations.sweep.report import write_results
    from simulations.sweep.results import collect

    plan = load_sweep(file, only or [], folder)
    count = worker_count(plan, workers)
    if dry_run:
        _dry_run(plan, count, as_json)
        return
    plan.runs_folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=as_json)
    with locked(plan.folder / ".sweep-lock"), _interrupts(console) as (stop, give_up):
        clear_half_made(plan)
        console.print(f"sweep folder: {plan.folder}", highlight=False, soft_wrap=True)
        view = SweepView(plan, console, count)
        failed: dict[str, str] = {}
        view.failed = failed

        def write() -> None:
            write_results(plan, collect(plan, failed))

        try:
            outcome = execute(plan, view, workers=count, stop=stop, give_up=give_up, after=write)
        finally:
            view.close()
        failed |= outcome.failed
        content = collect(plan, failed)
        page = write_results(plan, content)
    if as_json:
        print_json(content)
    else:
        _print_table(content, console)
        console.print(f"results: {page}", highlight=False, soft_wrap=True)
    for title, why in outcome.failed.items():
        typer.echo(f"fedllm: failed: {title}: {why}", err=True)
    if outcome.interrupted:
        typer.echo(f"fedllm: interrupted; `fedllm sweep {file}` resumes it", err=True)
        raise typer.Exit(130)
    if outcome.failed:
        raise typer.Exit(1)


class SweepView:
    """A progress bar over all rounds of all trials, and a line per trial."""

    def __init__(self, plan: Sweep, console: Console, workers: int) -> None:
        from simulations.sweep.execute import is_done

        self.plan = plan
        self.failed: dict[str, str] = {}
        self.left = {c.key: c.settings.server.rounds for c in plan.chosen if not is_done(plan, c)}
        kept = len(plan.chosen) - len(self.left)
        console.print(
            f"{len(plan.chosen)} runs, {kept} of them done; {workers} at the same time",
            highlight=False,
        )
        self.done = kept
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(
            f"{kept}/{len(plan.chosen)} runs", total=max(1, sum(self.left.values()))
        )
        self.progress.start()

    def started(self, trial: Trial, first_round: int) -> None:
        """Show that a trial's worker has started."""
        self._move(trial, first_round)
        again = f", from round {first_round}" if first_round else ""
        self._say(f"started   {trial.title}{again}")

    def moved(self, trial: Trial, done: int) -> None:
        """Show that a trial has finished a round."""
        self._move(trial, done)

    def ended(self, trial: Trial, status: str, message: str) -> None:
        """Show that a trial's worker has ended."""
        if status in ("finished", "stopped"):
            self.done += 1
        elif status == "failed":
            self.failed[trial.title] = message
        if status != "interrupted":
            self._move(trial, trial.settings.server.rounds)
        self._say(f"{status:<9} {trial.title}" + (f": {message}" if message else ""))
        self.progress.update(self.task, description=f"{self.done}/{len(self.plan.chosen)} runs")

    def close(self) -> None:
        """Close the display."""
        self.progress.stop()

    def _move(self, trial: Trial, done: int) -> None:
        rounds = trial.settings.server.rounds
        before = self.left[trial.key]
        self.left[trial.key] = rounds - done
        self.progress.advance(self.task, before - self.left[trial.key])

    def _say(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _interrupts(console: Console) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Yield two events: the first Ctrl-C (or SIGTERM) sets one, the second the other."""
    stop, give_up = threading.Event(), threading.Event()

    first = [0.0]

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not stop.is_set():
            first[0] = time.monotonic()
            stop.set()
            console.print("stopping after the messages under way; Ctrl-C again stops at once")
        elif time.monotonic() - first[0] > 1:  # not where one key or command sends two signals
            give_up.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield stop, give_up
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dry_run(plan: Sweep, workers: int, as_json: bool) -> None:
    """Print the runs and their remaining rounds."""
    from simulations.sweep.execute import is_done, rounds_done

    todo = {
        c.key: 0 if is_done(plan, c) else c.settings.server.rounds - rounds_done(plan, c)
        for c in plan.chosen
    }
    rows: list[dict[str, Any]] = [
        {
            "title": trial.title,
            "arm": trial.arm,
            "dataset": trial.dataset,
            "epsilon": trial.epsilon,
            "seed": trial.seed,
            "rounds": trial.settings.server.rounds,
            "rounds_left": todo[trial.key],
            "run": str(plan.run_path(trial)),
        }
        for trial in plan.chosen
    ]
    found: Mapping[str, Any] = {
        "name": plan.name,
        "folder": str(plan.folder),
        "workers": workers,
        "trials": rows,
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = make_table("run", "rounds", "left")
    for row in rows:
        table.add_row(row["title"], str(row["rounds"]), str(row["rounds_left"] or "done"))
    out = Console()
    out.print(table)
    out.print(
        f"{len(rows)} runs, {sum(not row['rounds_left'] for row in rows)} of them done; "
        f"{workers} at the same time",
        highlight=False,
    )


def _print_table(content: Mapping[str, Any], console: Console) -> None:
    """Print the main columns of the table on the terminal; the files have the rest."""
    from simulations.sweep import words

    metric = content["metric"]
    unit = ", %" if metric in words.SHARES else ""
    for heading, rows in words.blocks(content["table"]):
        table = make_table(
            "arm", "n", f"{metric}{unit}", "difference", "p", "gap closed", "epsilon"
        )
        table.columns[0].no_wrap = True
        table.title, table.title_justify = heading, "left"
        for row in rows:
            texts = words.row_texts(row, metric)
            both = {key: " ".join(filter(None, texts[key])) for key in ("n", "privacy")}
            spread = "" if texts["spread"][0] == "–" else f" ± {texts['spread'][0]}"
            table.add_row(
                texts["arm"][0],
                both["n"],
                f"{texts['mean'][0]}{spread}",
                texts["difference"][0],
                texts["p"][0],
                texts["gap"][0],
                both["privacy"],
            )
        console.print(table)
    notes = [*words.broken(content["table"]), *words.epsilon_meaning(content["table"])]
    if content["baseline"] is not None:
        notes.append(
            f"±: standard deviation over seeds. Difference to {content['baseline']}, p of the paired t-test "
            "over seeds, not adjusted; intervals, Holm's adjustment and the test over examples are in the "
            "results."
        )
    for sentence in notes:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
