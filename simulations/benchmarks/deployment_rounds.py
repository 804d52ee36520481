"""Time of a round in deployment (real processes, TLS, node authentication, nginx) and in simulation, by parts.

    python -m simulations.benchmarks.deployment_rounds [--rounds 5] [--nodes 4] [--json [OUT]]

The tiny experiment runs over nodes on this machine, and then on Flower's simulation engine. Clocks are put around
what the processes do (:func:`put_clocks`). For each silo and round, of the time from the server's
sending the tasks to its having all answers:

* computing: the local steps (:meth:`fedllm.training.dp_sgd.DpSgd.train`);
* loading: the rest of the app's work on the task (data, model, account and ledger), and the start of a process
  for it where it needs a new one;
* transfer: the node's requests that fetch the task and send the answer (not told apart in simulation);
* waiting: what is left: the engine looks for tasks and answers at intervals, nodes share the machine's cores.

Means over the silos; the first round, which loads the model, by itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

# Processes that are measured import this module first: what only the benchmark itself needs is imported where it is used.

ROOT = Path(__file__).resolve().parents[2]
TIMES = "FEDLLM_TIMES"
"""Variable with the folder that a process writes its times into."""
START = "from simulations.benchmarks.deployment_rounds import put_clocks\n\nput_clocks()\n"
"""``sitecustomize.py`` of a process with clocks."""
TRAIN = "train"
PARTS = ("waiting", "loading", "computing", "transfer")
Split = dict[int, dict[str, float]]
"""Seconds by round and part; ``whole`` is their sum, the round itself."""


# In the processes that are measured


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self.changes: dict[str, Callable[[Any], None]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        change = self.changes.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


_finder = _Finder()


def after_import(name: str, change: Callable[[Any], None]) -> None:
    """Call ``change`` with the module ``name`` once, when this process has imported it."""
    if name in sys.modules:
        change(sys.modules[name])
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.changes[name] = change


def put_clocks() -> None:
    """Make this process append JSON lines to its own file in the folder :data:`TIMES`.

    Each says what went on, from when to when (seconds since 1970, of this machine's clock), and in which round.
    """
    folder, started = Path(os.environ[TIMES]), time.time()
    current = {"round": 0}

    def tell(what: str, began: float, server_round: int, **more: Any) -> None:
        record = {"what": what, "began": began, "ended": time.time(), "round": server_round, **more}
        with (folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def around(owner: Any, name: str, after: Callable[..., None]) -> None:
        """Put a clock around a function: ``after(began, result, *arguments)`` tells."""
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.time()
            result = inner(*args, **kwargs)
            after(began, result, *args)
            return result

        setattr(owner, name, call)

    def round_of(message: Any) -> int:
        metadata = message.metadata
        return int(metadata.group_id) if metadata.message_type == TRAIN else 0

    def in_app(module: Any) -> None:
        inner = module.ClientApp.__call__

        def call(app: Any, message: Any, context: Any) -> Any:
            began, current["round"] = time.time(), round_of(message)
            reply = inner(app, message, context)
            if current["round"]:
                silo = str(reply.content["info"]["silo"])
                tell("app", began, current["round"], silo=silo, started=started)
            return reply

        module.ClientApp.__call__ = call

    def in_training(module: Any) -> None:
        around(module.DpSgd, "train", lambda began, *_: tell("train", began, current["round"]))

    def in_server(module: Any) -> None:
        def answered(began: float, _: Any, grid: Any, messages: Any) -> None:
            if messages and round_of(messages[0]):
                tell("exchange", began, round_of(messages[0]))

        around(module, "exchange", answered)

    def in_node(module: Any) -> None:
        client = module.FleetHttpClient

        def pulled(began: float, response: Any, *_: Any) -> None:
            if response.messages_list:
                current["round"] = round_of(response.messages_list[0])
                tell("pull", began, current["round"])

        def pushed(began: float, _: Any, connection: Any, request: Any) -> None:
            tell("push", began, round_of(request.messages_list[0]))

        around(client, "PullMessages", pulled)
        around(client, "PushMessages", pushed)
        parts = {"PullObject": "pull", "ConfirmMessageReceived": "pull", "PushObject": "push"}
        for name, what in parts.items():
            around(client, name, lambda began, *_, what=what: tell(what, began, current["round"]))

    after_import("flwr.clientapp.client_app", in_app)
    after_import("fedllm.training.dp_sgd", in_training)
    after_import("server.nodes.exchange", in_server)
    after_import("flwr.supernode.fleet_http_client", in_node)


# What starts them


def clocked(times: Path) -> dict[str, str]:
    """Make the folder for times, and return the environment of a process that writes into it."""
    start = times / "start"
    start.mkdir(parents=True, exist_ok=True)
    (start / "sitecustomize.py").write_text(START, encoding="utf-8")
    paths = [str(start), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), TIMES: str(times)}


def read_times(times: Path) -> list[dict[str, Any]]:
    """Read the times of a participant's processes."""
    lines = [line for file in times.glob("*.jsonl") for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def split(server: list[dict[str, Any]], silos: Mapping[str, list[dict[str, Any]]]) -> Split:
    """Return the parts of each round, as means over the silos.

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
    """Return the seconds in which at least one of what is recorded went on: parts of a message are fetched side by
    side."""
    total, until = 0.0, float("-inf")
    for began, ended in sorted((r["began"], r["ended"]) for r in records):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def write_experiment(folder: Path, rounds: int, silos: list[str]) -> Path:
    """Return the tiny experiment, its model and its data in a new folder, with an empty folder ``deployment`` next to it."""
    import tomli_w

    from simulations.benchmarks.support import tiny

    for name, save in (("model", tiny.save_encoder), ("words", tiny.save_words)):
        (folder / name).mkdir(parents=True)
        save(folder / name)
    (folder / "deployment").mkdir()
    changes: dict[str, Any] = {
        "server.rounds": rounds,
        "data.silo_names": silos,
        "privacy.epsilon": 1e5,
        "server.timeout": 1800.0,
        "server.wait_for_clients": 1200.0,
    }
    tree = tiny.tree(folder / "model", folder / "words", **changes)
    path = folder / "experiment.toml"
    path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    return path


def in_deployment(folder: Path, experiment: Path, silos: list[str]) -> Split:
    """Return the split of the rounds over nodes on this machine."""
    from simulations.benchmarks.local_federation import LocalFederation, make_folder

    class Clocked(LocalFederation):
        def environment(self, name: str) -> Mapping[str, str]:
            return clocked(folder / "times" / name)

    federation = Clocked(make_folder(folder / "fedllm", *silos), folder.parent / "words")
    with federation.up():
        federation.run(experiment)
    times = {name: read_times(folder / "times" / name) for name in silos}
    return split(read_times(folder / "times" / "server"), times)


def in_simulation(folder: Path, experiment: Path) -> Split:
    """Return the split of the rounds on Flower's simulation engine."""
    command = [sys.executable, "-m", "simulations.cli.main", "run", str(experiment)]
    subprocess.run(
        [*command, "--run", str(folder / "run")],
        cwd=ROOT,
        env=os.environ | clocked(folder / "times"),
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=3600,
    )
    times = read_times(folder / "times")
    silos: dict[str, list[dict[str, Any]]] = {}
    apps = [record for record in times if record["what"] == "app"]
    # One process serves several silos: what lies within the app's time is the silo's.
    for app in apps:
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
    """Measure deployment and simulation in ``folder``.

    Raises:
        RuntimeError: a run failed.
    """
    from simulations.benchmarks.support import tiny

    silos = list(tiny.SILOS)[:nodes]
    experiment = write_experiment(folder, rounds, silos)
    return {
        "deployment": in_deployment(folder / "deployment", experiment, silos),
        "simulation": in_simulation(folder / "simulation", experiment),
    }


def summary(found: Split) -> dict[str, dict[str, float]]:
    """Return seconds by part in the first round, and medians over the later ones."""
    names = ("whole", *PARTS)
    later = [parts for number, parts in found.items() if number > 1]
    result = {"first round": {name: found[1][name] for name in names}}
    if later:
        result["later rounds"] = {
            name: statistics.median(parts[name] for parts in later) for name in names
        }
    return result


def main() -> int:
    """Measure, and print a table or JSON; return the exit status."""
    from rich.console import Console
    from rich.table import Table

    from simulations.benchmarks.support import tiny

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
