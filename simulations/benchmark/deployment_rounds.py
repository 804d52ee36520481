"""Time of a round in deployment (real processes, TLS, node authentication, nginx) and in simulation, by parts.

    python -m simulations.benchmark.deployment_rounds [--rounds 5] [--nodes 4] [--json [OUT]]

The tiny experiment runs over nodes on this machine, and then on Flower's simulation engine. Clocks are put around
what the processes do (``probe/sitecustomize.py``). For each silo and round, of the time from the server's
sending the tasks to its having all answers:

* computing: the local steps (:func:`fedllm.local_training.train_locally`);
* loading: the rest of the app's work on the task (data, model, account and ledger), and the start of a process
  for it where it needs a new one;
* transfer: the node's requests that fetch the task and send the answer (not told apart in simulation);
* waiting: what is left: the engine looks for tasks and answers at intervals, nodes share the machine's cores.

Means over the silos; the first round, which loads the model, by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console
from rich.table import Table

from simulations.benchmark import tiny
from simulations.benchmark.local_federation import ROOT, LocalFederation, make_folder

PROBE = Path(__file__).parent / "probe"
PARTS = ("waiting", "loading", "computing", "transfer")
Split = dict[int, dict[str, float]]
"""Seconds by round and part; ``whole`` is their sum, the round itself."""


class Probed(LocalFederation):
    """A federation with clocks in its processes."""

    def times(self, name: str) -> Path:
        """Folder with the times of a participant."""
        return self.folder.path.parent / "times" / name

    def environment(self, name: str) -> Mapping[str, str]:
        """The clocks are read from PYTHONPATH."""
        return probed(self.times(name))


def probed(times: Path) -> dict[str, str]:
    """Environment of a process that writes its times into a folder, which is made."""
    times.mkdir(parents=True, exist_ok=True)
    paths = [str(PROBE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "FEDLLM_PROBE": str(times)}


def read_times(times: Path) -> list[dict[str, Any]]:
    """What the processes of a participant wrote."""
    lines = [line for file in times.glob("*.jsonl") for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def split(server: list[dict[str, Any]], silos: Mapping[str, list[dict[str, Any]]]) -> Split:
    """The parts of each round, as means over the silos.

    Args:
        server: times of the server's processes.
        silos: times of each silo's.
    """
    found: Split = {}
    for exchange in (record for record in server if record["what"] == "exchange"):
        number, whole = exchange["round"], exchange["ended"] - exchange["began"]
        rows = []
        for times in silos.values():
            mine = [record for record in times if record["round"] == number]
            row = dict.fromkeys(PARTS, 0.0)
            for record in mine:
                seconds = record["ended"] - record["began"]
                if record["what"] == "train":
                    row["computing"] += seconds
                    row["loading"] -= seconds
                elif record["what"] == "app":
                    row["loading"] += seconds
                    if record["started"] > exchange["began"]:
                        row["loading"] += record["began"] - record["started"]
            row["transfer"] = covered([r for r in mine if r["what"] in ("pull", "push")])
            row["waiting"] = whole - sum(row.values())
            rows.append(row)
        means = {part: statistics.mean(row[part] for row in rows) for part in PARTS}
        found[number] = means | {"whole": whole}
    return found


def covered(records: Sequence[Mapping[str, Any]]) -> float:
    """Seconds in which at least one of what is recorded went on: parts of a message are fetched side by side."""
    total, until = 0.0, float("-inf")
    for began, ended in sorted((r["began"], r["ended"]) for r in records):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def write_experiment(folder: Path, rounds: int, silos: list[str], **changes: Any) -> Path:
    """The tiny experiment, its model and its data in a new folder, with an empty folder ``deployment`` beside."""
    for name, save in (("model", tiny.save_encoder), ("words", tiny.save_words)):
        (folder / name).mkdir(parents=True)
        save(folder / name)
    (folder / "deployment").mkdir()
    common: dict[str, Any] = {
        "server.rounds": rounds,
        "data.silo_names": silos,
        "privacy.epsilon": 1e5,
        "server.timeout": 1800.0,
        "server.wait_for_clients": 1200.0,
    }
    tree = tiny.tree(folder / "model", folder / "words", **common | changes)
    path = folder / "experiment.toml"
    path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    return path


def in_deployment(folder: Path, experiment: Path, silos: list[str]) -> Split:
    """The split of the rounds over nodes on this machine."""
    federation = Probed(make_folder(folder / "fedllm", *silos), folder.parent / "words")
    with federation.up():
        federation.run(experiment)
    times = {name: read_times(federation.times(name)) for name in silos}
    return split(read_times(federation.times("server")), times)


def in_simulation(folder: Path, experiment: Path) -> Split:
    """The split of the rounds on Flower's simulation engine."""
    command = [sys.executable, "-m", "simulations.cli", "run", str(experiment)]
    subprocess.run(
        [*command, "--run", str(folder / "run")],
        cwd=ROOT,
        env=os.environ | probed(folder / "times"),
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=3600,
    )
    times = read_times(folder / "times")
    silos: dict[str, list[dict[str, Any]]] = {}
    apps = [record for record in times if record["what"] == "app"]
    for (
        app
    ) in apps:  # one process serves several silos: what lies within the app's time is the silo's
        within = [
            record
            for record in times
            if record["what"] == "train"
            and app["began"] <= record["began"]
            and record["ended"] <= app["ended"]
            and record["round"] == app["round"]
        ]
        silos.setdefault(app["silo"], []).extend([app, *within])
    return split(times, silos)


def measure(folder: Path, rounds: int, nodes: int) -> dict[str, Split]:
    """Both, in ``folder``.

    Raises:
        RuntimeError: a run failed.
    """
    silos = list(tiny.SILOS)[:nodes]
    experiment = write_experiment(folder, rounds, silos)
    return {
        "deployment": in_deployment(folder / "deployment", experiment, silos),
        "simulation": in_simulation(folder / "simulation", experiment),
    }


def summary(found: Split) -> dict[str, dict[str, float]]:
    """Seconds by part in the first round, and medians over the later ones."""
    names = ("whole", *PARTS)
    later = [parts for number, parts in found.items() if number > 1]
    result = {"first round": {name: found[1][name] for name in names}}
    if later:
        result["later rounds"] = {
            name: statistics.median(parts[name] for parts in later) for name in names
        }
    return result


def main() -> int:
    """Measure, and print a table or JSON; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=4, choices=range(1, len(tiny.SILOS) + 1))
    parser.add_argument("--json", nargs="?", const="-", help="to a file, or - for printing it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedllm-rounds-") as name:
        found = measure(Path(name) / "rounds", args.rounds, args.nodes)
    shown = {where: summary(rounds) for where, rounds in found.items()}
    if args.json != "-":
        table = Table("seconds a round", "", "whole", *PARTS)
        for where, parts in shown.items():
            for which, row in parts.items():
                table.add_row(where, which, *(f"{row[key]:.2f}" for key in ("whole", *PARTS)))
        Console().print(table)
    text = json.dumps({"summary": shown, "rounds": found, "load": os.getloadavg()}, indent=2)
    if args.json == "-":
        print(text)
    elif args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
