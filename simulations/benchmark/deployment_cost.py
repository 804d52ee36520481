"""What one training task costs on a node, by parts: with the process that stays, and with a new one for it.

    python -m simulations.benchmark.deployment_cost [--rounds 13] [--nodes 1] [--model NAME] [--json [OUT]]

A deployment on this machine (real processes, TLS, node authentication, nginx) runs a small experiment. In the
odd rounds the node's app gets a new process, as with Flower's own executor, in the even ones it has the one of
the round before: the two are interleaved in one run, so that what else the machine does slows both. (Looking for
tasks at intervals takes the same time on any machine, so the ratio of the wholes grows with a machine's load; the
first round is left out.) For each silo and round the time from the server's sending to its
having the answer is the sum of

* asking: until the SuperNode's request that brings the task (it asks every 3 s);
* transfer: that request and those for the task's arrays, and the ones that send the answer;
* taking: until the silo's executor has the task from the SuperNode (it looks every 0.2 s);
* start, imports: the start of a process for the app, and until the app is imported;
* model, data: loading the backbone; the silo's data and account;
* computing: the local steps;
* app: the rest of the app's work (ledger, calibration in a new process);
* handing: to and from the app's process, and until the SuperNode sees the answer (it looks every 0.5 s);
* collecting: until the server sees it (it looks every 0.02 to 0.5 s).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from simulations.benchmark import tiny
from simulations.benchmark.deployment_rounds import Probed, read_times, write_experiment
from simulations.benchmark.local_federation import make_folder
from simulations.benchmark.timing import Spread, paired_ratio

WAITING = ("asking", "taking", "handing", "collecting")
PARTS = (
    *("asking", "transfer", "taking", "start", "imports", "model", "data"),
    *("computing", "app", "handing", "collecting"),
)
KEPT, FRESH = "kept", "new"
Row = dict[str, float]
Times = Sequence[Mapping[str, Any]]


class Alternating(Probed):
    """A federation with clocks, whose nodes start the app's process anew for every other round."""

    def environment(self, name: str) -> Mapping[str, str]:
        return dict(super().environment(name)) | {"FEDLLM_PROBE_FRESH": "1"}


def split(server: Times, node: Times, silo: str, server_round: int) -> Row:
    """The parts of a silo's task of a round, in seconds; they sum to ``whole``.

    Args:
        server: times of the server's processes.
        node: times of the node's.

    Raises:
        LookupError: the round has no answer of the silo, or its times are not all there.
    """
    mine = [record for record in node if record["round"] == server_round]
    theirs = [record for record in server if record["round"] == server_round]

    def of(records: Times, what: str) -> Mapping[str, Any]:
        found = [record for record in records if record["what"] == what]
        if not found:
            raise LookupError(
                f"Expected times of {what} of {silo} in round {server_round}, found none"
            )
        return found[0]

    def span(what: str) -> tuple[float, float]:
        found = [record for record in mine if record["what"] == what]
        of(mine, what)
        return min(r["began"] for r in found), max(r["ended"] for r in found)

    def total(what: str) -> float:
        return float(sum(r["ended"] - r["began"] for r in mine if r["what"] == what))

    sent = of(theirs, "send")["began"]
    arrived = of([r for r in theirs if r.get("silo") == silo], "arrival")["ended"]
    pull, push, app, task = span("pull"), span("push"), of(mine, "app"), of(mine, "task")
    spawns = [record["began"] for record in mine if record["what"] == "spawn"]
    row = dict.fromkeys(PARTS, 0.0)
    row["asking"] = pull[0] - sent
    row["transfer"] = pull[1] - pull[0] + push[1] - push[0]
    row["taking"] = task["ended"] - pull[1]
    if spawns:
        row["start"] = app["started"] - spawns[0]
        row["imports"] = app["imported"] - app["started"]
    row["model"], row["computing"] = total("model"), total("train")
    row["data"] = total("open") - row["model"]
    row["app"] = app["ended"] - app["began"] - total("open") - row["computing"]
    row["collecting"] = arrived - push[1]
    row["handing"] = arrived - sent - sum(row.values())
    return row | {"whole": arrived - sent}


def measure(folder: Path, rounds: int, nodes: int, model: str = "") -> list[dict[str, Any]]:
    """One row for each silo and round after the first, with ``silo``, ``round`` and ``process`` beside the parts.

    Args:
        folder: new folder.
        model: ``model.name``; empty: a random encoder of two layers.

    Raises:
        RuntimeError: the run failed.
    """
    silos = list(tiny.SILOS)[:nodes]
    changes = {"evaluation.every": 1000} | ({"model.name": model} if model else {})
    experiment = write_experiment(folder, rounds, silos, **changes)
    federation = Alternating(
        make_folder(folder / "deployment" / "fedllm", *silos), folder / "words"
    )
    with federation.up():
        federation.run(experiment)
    server = read_times(federation.times("server"))
    return [
        {"silo": silo, "round": number, "process": FRESH if number % 2 else KEPT}
        | split(server, read_times(federation.times(silo)), silo, number)
        for silo in silos
        for number in range(2, rounds + 1)
    ]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Row]:
    """Medians over silos and rounds, for either kind of process.

    ``node`` is what the node itself takes: the whole without waiting.
    """
    found: dict[str, Row] = {}
    for kind in (KEPT, FRESH):
        chosen = [row for row in rows if row["process"] == kind]
        found[kind] = {p: statistics.median(row[p] for row in chosen) for p in ("whole", *PARTS)}
        found[kind]["node"] = statistics.median(own_time(row) for row in chosen)
    return found


def own_time(row: Mapping[str, Any]) -> float:
    """What the node itself takes for a task: the whole without waiting, in seconds."""
    return float(row["whole"] - sum(row[part] for part in WAITING))


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """How many times as long a task takes in a new process: each even round with the odd one after it."""
    by_place = {(row["silo"], row["round"]): row for row in rows}
    pairs = [
        (by_place[silo, number + 1], row)
        for (silo, number), row in by_place.items()
        if row["process"] == KEPT and (silo, number + 1) in by_place
    ]
    return {
        "whole": paired_ratio(
            [new["whole"] for new, _ in pairs], [old["whole"] for _, old in pairs]
        ),
        "node": paired_ratio(
            [own_time(new) for new, _ in pairs], [own_time(old) for _, old in pairs]
        ),
    }


def main() -> int:
    """Measure, and print a table or JSON; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=13, help="at least 3")
    parser.add_argument("--nodes", type=int, default=1, choices=range(1, len(tiny.SILOS) + 1))
    parser.add_argument(
        "--model", default="", help="model.name; else a random encoder of two layers"
    )
    parser.add_argument("--json", nargs="?", const="-", help="to a file, or - for printing it")
    args = parser.parse_args()
    if args.rounds < 3:
        parser.error(
            f"Expected --rounds >= 3 (one of each kind after the first), got {args.rounds}"
        )
    with tempfile.TemporaryDirectory(prefix="fedllm-cost-") as name:
        rows = measure(Path(name) / "cost", args.rounds, args.nodes, args.model)
    shown, compared = summary(rows), ratios(rows)
    if args.json != "-":
        table = Table("seconds a task (medians)", KEPT, FRESH)
        for part in ("whole", "node", *PARTS):
            table.add_row(part, *(f"{shown[kind][part]:.3f}" for kind in (KEPT, FRESH)))
        Console().print(table)
        for part, ratio in compared.items():
            print(
                f"{part}: with a new process {ratio.median:.2f} times as long "
                f"(quartiles {ratio.low:.2f} to {ratio.high:.2f} of {ratio.count} pairs of rounds)"
            )
    plain = {part: asdict(ratio) for part, ratio in compared.items()}
    found = {"summary": shown, "ratios": plain, "tasks": rows, "load": os.getloadavg()}
    text = json.dumps(found, indent=2)
    if args.json == "-":
        print(text)
    elif args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
