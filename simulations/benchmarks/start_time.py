"""Measure the start time of ``fedllm`` commands: the CPU time of their ``--help``.

    python -m simulations.benchmarks.start_time [--repeats 5] [--json OUT]

Each command is started in a separate process, in turn with ``python -c pass``; printed are the medians and the
ratio of each to that of ``python -c pass``, which hardly depends on the machine or on what else runs there.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from simulations.cli import deploy, ledger, main

ROOT = Path(__file__).resolve().parents[2]
NOTHING = "python -c pass"


def commands() -> Iterator[tuple[str, ...]]:
    """Yield the words of every command: none, each command, each command of a group."""
    yield ()
    groups = {"ledger": ledger.COMMANDS, "deploy": deploy.COMMANDS}
    for name in main.COMMANDS:
        yield (name,)
        yield from ((name, inner) for inner in groups.get(name, ()))


def cpu_seconds(command: Sequence[str]) -> float:
    """Run a command to its end; return the CPU time that it took, that of the kernel included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def measure(chosen: Sequence[tuple[str, ...]], repeats: int) -> dict[str, float]:
    """Return the median CPU seconds of ``python -c pass`` and of each command's ``--help``, by their names."""
    lines = {NOTHING: [sys.executable, "-c", "pass"]}
    for words in chosen:
        lines[" ".join(("fedllm", *words, "--help"))] = [
            *(sys.executable, "-m", "simulations.cli"),
            *(*words, "--help"),
        ]
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(repeats):
        for name, line in lines.items():
            seconds[name].append(cpu_seconds(line))
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return each command's CPU time over that of ``python -c pass``."""
    return {name: value / seconds[NOTHING] for name, value in seconds.items()}


def start(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args(arguments)
    seconds = measure(list(commands()), options.repeats)
    found = ratios(seconds)
    for name in sorted(seconds, key=seconds.__getitem__):
        print(f"{name:<36} {seconds[name]:7.3f} s {found[name]:7.1f}")
    if options.json is not None:
        options.json.write_text(json.dumps({"seconds": seconds, "ratios": found}, indent=2))


if __name__ == "__main__":
    start()
