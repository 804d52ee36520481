"""Rounds on real processes with a node killed every few of them: nothing is lost, nothing counted too little.

    python -m tests.deployment.chaos [--rounds 100] [--every 5] [--seed 0] [--json [OUT]]

A server and four nodes (TLS, node authentication, nginx) run the embedded experiment (simulations/experiments/tweets.toml:
MiniLM, the tweets to four airlines). Again and again a node drawn at random is killed (SIGKILL to all of
its processes, at a random moment) and started again. With fresh noise (``privacy.randomness = "os"``), as in
production: each computed round is a release of its own.

Shown: whether all rounds came to their end; for each silo the rows in its ledger beside the updates that are
in the model (a row more is a round in which the silo was lost after it had recorded the release and before
the server had the answer; a row less would be a violation); accuracy beside that of undisturbed runs of the
same experiment in one process, which differ by their noise. Exit status 1 on any violation.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from fedllm.data.public import evaluation_set
from fedllm.data.silos import load_federation
from fedllm.run.folder import RunFolder
from fedllm.settings.io import load_settings
from privacy.ledger.ledger import Ledger
from simulations.benchmarks.local_federation import ROOT, LocalFederation, make_folder
from simulations.in_process import federate

SILOS = ["united", "usairways", "americanair", "southwestair"]
EXPERIMENT = ROOT / "simulations" / "experiments" / "tweets.toml"
CHANGES: dict[str, dict[str, Any]] = {
    "data": {
        "source": "files",
        "train": "train.jsonl",
        "validation": "validation.jsonl",
        "silo_names": SILOS,
    },
    "privacy": {"randomness": "os"},
    "server": {"timeout": 600.0, "wait_for_clients": 600.0, "max_failures": 0.75},
    "evaluation": {"every": 1000},
    "output": {"tensorboard": False},
}
"""Of the experiment. Its tweets lie in files, one for each node and one for the server."""


@dataclass
class Outcome:
    """What was found; ``violations`` should stay empty."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    rows: dict[str, int] = field(default_factory=dict)
    in_the_model: dict[str, int] = field(default_factory=dict)
    lost_after_the_row: dict[str, list[int]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    accuracy: float = float("nan")
    undisturbed: list[float] = field(default_factory=list)
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        several = len(self.undisturbed) > 1
        return {
            "rounds": self.rounds,
            "kills": dict(self.kills),
            "ledger_rows": self.rows,
            "updates_in_the_model": self.in_the_model,
            "rounds_lost_after_the_row": self.lost_after_the_row,
            "why_updates_are_missing": dict(self.reasons),
            "accuracy": self.accuracy,
            "accuracy_undisturbed": self.undisturbed,
            "accuracy_undisturbed_mean": statistics.mean(self.undisturbed or [float("nan")]),
            "accuracy_undisturbed_sd": statistics.stdev(self.undisturbed) if several else None,
            "seconds": round(self.seconds, 1),
            "violations": self.violations,
        }


def chaos(
    folder: Path, rounds: int, every: int, seed: int, outcome: Outcome, references: int = 3
) -> None:
    """Run the federation in ``folder`` with kills, and fill in the outcome.

    Args:
        every: mean number of rounds between two kills.
        references: undisturbed runs to compare with.
    """
    rng = random.Random(seed)
    began = time.monotonic()
    experiment, labels = _experiment(folder, rounds)
    federation = LocalFederation(
        make_folder(folder / "deployment" / "fedllm", *SILOS), folder, labels
    )
    with federation.up():
        run = federation.submit(experiment)
        _kill_until_over(federation, run, rng, every, outcome)
    outcome.seconds = time.monotonic() - began
    _judge(run, federation, rounds, outcome)
    for number in range(references):
        reference = RunFolder.create(load_settings(experiment), folder / f"undisturbed-{number}")
        federate(reference)
        outcome.undisturbed.append(_accuracy(reference))


def _experiment(folder: Path, rounds: int) -> tuple[Path, list[str]]:
    """The experiment's file and its classes; its data are written beside it."""
    settings = load_settings(EXPERIMENT)
    folder.mkdir(parents=True)
    train = [
        r for silo in load_federation(settings).silos if silo.name in SILOS for r in silo.train
    ]
    for name, records in (("train", train), ("validation", evaluation_set(settings).records)):
        text = "".join(json.dumps(dict(record)) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    tree = tomllib.loads(EXPERIMENT.read_text(encoding="utf-8"))
    for section, values in CHANGES.items():
        tree[section] = tree.get(section, {}) | values
    tree["data"]["path"] = str(folder)
    tree["server"]["rounds"] = rounds
    path = folder / "experiment.toml"
    path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    return path, list(tree["task"]["labels"])


def _kill_until_over(
    federation: LocalFederation, run: RunFolder, rng: random.Random, every: int, outcome: Outcome
) -> None:
    """Kill a node every few rounds, unless two of them are away already."""
    next_kill = rng.randint(1, every)
    shown = -1
    while federation.processes and run.state()["status"] in ("created", "running"):
        done = int(run.state()["round"])
        if done != shown:
            print(f"round {done} of {run.state()['rounds']}", file=sys.stderr, flush=True)
            shown = done
        if done >= next_kill:
            states = federation.node_states()
            away = [name for name, said in states.items() if said != "online"]
            if states and len(away) < 2:
                time.sleep(rng.uniform(0, 10))
                name = rng.choice([silo for silo in SILOS if silo not in away])
                print(f"after round {run.state()['round']}: kill {name}", file=sys.stderr)
                federation.kill_node(name)
                outcome.kills[name] += 1
                federation.start_node(name)
                next_kill = int(run.state()["round"]) + rng.randint(1, 2 * every - 1)
        time.sleep(0.5)


def _judge(run: RunFolder, federation: LocalFederation, rounds: int, outcome: Outcome) -> None:
    state = run.state()
    records = [record for record in run.metrics() if record["kind"] == "round"]
    outcome.rounds = len(records)
    if state["status"] != "finished" or [r["round"] for r in records] != list(range(1, rounds + 1)):
        outcome.violations.append(
            f"{state['status']} with {len(records)} of {rounds} rounds: {state['message']}"
        )
    missing: dict[int, set[str]] = {}
    for record in records:
        items = [*record["failed"], *record["refused"], *record["left"]]
        missing[record["round"]] = {item["silo"] for item in items}
        outcome.reasons.update(item["reason"][:80] for item in items)
        if record["refused"] or record["left"]:
            outcome.violations.append(
                f"round {record['round']}: {record['refused'] or record['left']}"
            )
    for silo in SILOS:
        with Ledger(federation.ledger(silo), read_only=True) as ledger:
            report = ledger.verify()
            rows = Counter(entry.round for entry in ledger.entries(run=run.run_id))
        outcome.violations += [f"{silo}: {problem}" for problem in report.problems]
        used = {number for number, who in missing.items() if silo not in who}
        outcome.rows[silo] = sum(rows.values())
        outcome.in_the_model[silo] = len(used)
        outcome.lost_after_the_row[silo] = sorted((rows - Counter(used)).elements())
        if under := sorted((Counter(used) - rows).elements()):
            outcome.violations.append(f"{silo}: no row for the updates of rounds {under}")
    outcome.accuracy = _accuracy(run) if state["status"] == "finished" else float("nan")


def _accuracy(run: RunFolder) -> float:
    records = [r for r in run.metrics() if r["kind"] == "evaluation" and r["where"] == "server"]
    return float(records[-1]["accuracy"])


def main() -> int:
    """Run it and print what was found; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--every", type=int, default=5, help="mean number of rounds between kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="new folder to keep everything in")
    parser.add_argument("--json", nargs="?", const="-", help="to a file, or - for printing it")
    args = parser.parse_args()
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="fedllm-chaos-") as name:
        chaos(args.folder or Path(name) / "chaos", args.rounds, args.every, args.seed, outcome)
    report = outcome.plain()
    if args.json != "-":
        for key, value in report.items():
            print(f"{key:28} {value}")
    if args.json == "-":
        print(json.dumps(report, indent=2))
    elif args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
