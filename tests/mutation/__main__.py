"""Break the mechanism on purpose and see that a test fails: `python -m tests.mutation [NAME ...]`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .catalogue import MUTATIONS
from .runner import Verdict, run_all


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 if every mutation was killed, 1 if one was not, 2 for a bad command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutations to try (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--jobs", type=int, default=1, help="copies at work at the same time")
    parser.add_argument("--list", action="store_true", help="print the names and what each breaks")
    options = parser.parse_args(arguments)
    known = {mutation.name: mutation for mutation in MUTATIONS}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"Expected a mutation out of {', '.join(known)}; got {', '.join(unknown)}")
    if options.jobs < 1:
        parser.error(f"Expected --jobs >= 1, got {options.jobs}")
    chosen = [known[name] for name in dict.fromkeys(options.names)] or list(MUTATIONS)
    if options.list:
        for mutation in chosen:
            print(f"{mutation.name}: {mutation.harm}")
        return 0
    began = time.monotonic()
    screen = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=screen,
    ) as progress:
        bar = progress.add_task("copying", total=len(chosen) + 1)

        def show(number: int, total: int, text: str) -> None:
            progress.update(bar, completed=number, total=total, description=text)
            if not screen.is_terminal:  # a bar is drawn on terminals only
                print(f"{number}/{total} {text}", file=sys.stderr, flush=True)

        verdicts, unsound = run_all(chosen, jobs=options.jobs, done=show)
    seconds = time.monotonic() - began
    if options.json:
        plain = {
            "mutations": [asdict(verdict) for verdict in verdicts],
            "failing_without_mutation": unsound,
            "killed": sum(verdict.status == "killed" for verdict in verdicts),
            "seconds": round(seconds, 1),
        }
        print(json.dumps(plain, indent=1))
    else:
        _print(verdicts, unsound, seconds)
    return 0 if not unsound and all(v.status == "killed" for v in verdicts) else 1


def _print(verdicts: list[Verdict], unsound: list[str], seconds: float) -> None:
    console = Console()
    table = Table()
    for title in ("mutation", "what it breaks", "killed by", "seconds"):
        table.add_column(title, overflow="fold")
    for verdict in verdicts:
        test = verdict.killer.removeprefix("tests/")
        what = test if verdict.status == "killed" else f"{verdict.status.upper()} {verdict.message}"
        table.add_row(verdict.name, verdict.harm, what, f"{verdict.seconds:.1f}")
    console.print(table)
    killed = sum(verdict.status == "killed" for verdict in verdicts)
    console.print(f"{killed} of {len(verdicts)} mutations killed, {seconds:.0f} s")
    for line in unsound:
        console.print(f"Fails without any mutation: {line}")


if __name__ == "__main__":
    sys.exit(main())
