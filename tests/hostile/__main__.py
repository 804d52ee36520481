"""Send a silo every hostile task and print what it did: `python -m tests.hostile [--each] [WORD ...]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from simulations.benchmarks.support import tiny

from .cases import all_cases
from .honest import KINDS, message_of, parts, settings_for
from .silo import ANSWERED, CRASHED, REFUSED, SPENT, HostedSilo, Outcome, quiet, resident


def hosted(folder: Path) -> HostedSilo:
    """A silo with the tiny model and its data, in a folder."""
    (folder / "model").mkdir(parents=True)
    (folder / "words").mkdir()
    tiny.save_encoder(folder / "model")
    tiny.save_words(folder / "words")
    return HostedSilo(folder / "silo", folder / "model", folder / "words" / "validation.jsonl")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 where no task spent and then failed, none crashed, and each honest one was answered."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("words", nargs="*", help="only cases whose name holds one of them")
    parser.add_argument("--each", action="store_true", help="a line for each case")
    options = parser.parse_args(arguments)
    with quiet():
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    counts: dict[tuple[str, str], Counter[str]] = {}
    wrong: list[str] = []
    most_memory = most_disk = 0
    grown, before = 0, 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        silo = hosted(Path(name))
        wrong += _honest(silo, "before")
        before = resident(collected=True)
        for case in all_cases(silo):
            if options.words and not any(word in str(case) for word in options.words):
                continue
            start = time.monotonic()
            found = silo.ask(case.build)
            seconds = time.monotonic() - start
            group = case.field if case.field in ("settings", "params") else "fields and records"
            group = "codec" if case.field.startswith("codec ") else group
            counts.setdefault((case.kind, group), Counter())[found.verdict] += 1
            if found.verdict != ANSWERED:
                most_memory = max(most_memory, found.memory)
                most_disk = max(most_disk, found.disk)
            bad = found.verdict in (SPENT, CRASHED)
            if bad or (found.verdict == ANSWERED and not case.may_answer):
                wrong.append(f"{case}: {found.verdict}: {found.reason}")
            if options.each:
                print(
                    f"{case}: {found.verdict} ({seconds:.2f} s): {found.reason[:160]}", flush=True
                )
        grown = resident(collected=True) - before
        wrong += _honest(silo, "after")
    _print(counts)
    print(
        f"{sum(sum(c.values()) for c in counts.values())} tasks in {time.monotonic() - began:.0f} s. All of them "
        f"left {grown / 2**20:.1f} MiB in the process (one refused task at most {most_memory / 2**20:.1f} MiB until the "
        f"next), and one refused task at most {most_disk / 2**10:.1f} KiB on disk, the ledger left out."
    )
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def _honest(silo: HostedSilo, when: str) -> list[str]:
    wrong = []
    for kind in KINDS:
        found: Outcome = silo.ask(
            lambda s, kind=kind: message_of(kind, parts(s, kind, settings_for(s, kind)))
        )
        if found.verdict != ANSWERED:
            wrong.append(f"honest {kind} {when}: {found.verdict}: {found.reason}")
    return wrong


def _print(counts: dict[tuple[str, str], Counter[str]]) -> None:
    table = Table("task", "changed", REFUSED, "answered with a row", SPENT, CRASHED)
    for (kind, group), found in sorted(counts.items()):
        table.add_row(kind, group, *(str(found[v]) for v in (REFUSED, ANSWERED, SPENT, CRASHED)))
    total = sum(counts.values(), Counter[str]())
    table.add_section()
    table.add_row("all", "", *(str(total[v]) for v in (REFUSED, ANSWERED, SPENT, CRASHED)))
    Console(width=max(100, Console().width)).print(table)


if __name__ == "__main__":
    sys.exit(main())
