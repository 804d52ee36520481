"""Kill -9 at random moments of runs: the ledger is never below what was released, and a resumed run
ends as an uninterrupted one.

    python -m tests.crash.crash [--kills 200] [--engine 0] [--seed 0] [--json [OUT]]

A run of tiny silos is started in a process group of its own, killed, resumed, killed again, ... until it
ends; then the next one, until there were enough kills. One half of the processes is killed at a moment
drawn uniformly from the length of an uninterrupted run; the other half before, within or after a step
that makes something durable (``os.fsync``, ``os.replace``, ``os.rename``, SQLite's INSERT and COMMIT),
drawn uniformly from the steps of an uninterrupted run.

After each kill: every received value has a row of its own in the ledger (what was received is witnessed
outside of the run, see :mod:`tests.crash.child`); the chain is whole and holds the head
that it had after the kill before; the last checkpoint is whole. With seeded randomness it has the same
bits as the checkpoint of that round of the uninterrupted run; a round gives one value however often it
is repeated; and a run that came to its end has the same ledger (multiset of rows) and the same model and
optimiser. ``--engine N`` adds N kills of runs on Flower's engine (:mod:`tests.crash.engine`).

A kill leaves what the process wrote in the system's page cache: this shows the order of writes, and not
that ``fsync`` does what it promises when power is lost. Exit status 1 on any violation.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from fedllm.budget.release_id import params_digest
from fedllm.run.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.settings.io import parse_settings
from fedllm.training.tunable import shared_tunable
from privacy.ledger.ledger import Ledger, LedgerEntry
from simulations.benchmarks.support import tiny
from tests.crash.child import MODEL, Aim, start, witnessed

LIMIT = 300.0
"""Seconds after which a process that does not end is a violation."""
ROUNDS = {
    "server.rounds": 6,
    "server.fraction": 0.75,
    "server.averaging": 0.5,
    "server.checkpoint_every": 2,
    "server.keep_checkpoints": 100,
}
EVALUATION = {
    "evaluation.every": 3,
    "evaluation.clients": "private",
    "evaluation.clients_holdout": 0.2,
}
SERVER_NOISE = {
    "privacy.unit": "client",
    "privacy.noise_by": "server",
    "server.sampling": "poisson",
}
FRESH = {"privacy.randomness": "os", "privacy.spare_rounds": 12}
"""A repeated round with fresh noise is a release of its own, which the plan must hold."""
CASES: dict[str, dict[str, Any]] = {
    "seeded noise by the silos": ROUNDS | EVALUATION,
    "fresh noise by the silos": ROUNDS | EVALUATION | FRESH,
    "seeded noise by the server": ROUNDS | SERVER_NOISE,
    "fresh noise by the server": ROUNDS | SERVER_NOISE | FRESH,
}
Step = tuple[str, str, int]
"""(party, purpose, round)."""


@dataclass
class Tally:
    """What was found so far; ``violations`` should stay empty."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    cases: Counter[str] = field(default_factory=Counter)
    received: int = 0
    repeated: int = 0
    ahead: Counter[int] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kills": sum(self.kills.values()),
            "kills_by_moment": dict(self.kills),
            "kills_by_case": dict(self.cases),
            "runs_finished": self.runs,
            "values_received": self.received,
            "values_of_repeated_rounds": self.repeated,
            "kills_by_rows_without_a_received_value": {
                str(rows): count for rows, count in sorted(self.ahead.items())
            },
            "violations": self.violations,
            "seconds": round(self.seconds, 1),
        }


@dataclass
class Reference:
    """An uninterrupted run: where it is, how long it took, in how many durable steps."""

    run: RunFolder
    seconds: float
    steps: int


class Attempts:
    """Runs of one case, killed and resumed; made once for each case.

    Args:
        settings: the experiment.
        folder: an empty folder for its runs.
        tally: takes what is found.
        sabotage: called in each killed process before its run.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        folder: Path,
        tally: Tally,
        sabotage: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.folder = folder
        self.tally = tally
        self.sabotage = sabotage
        self.seeded = settings.privacy.randomness == "seeded"
        folder.mkdir()
        began = time.monotonic()
        run, log = RunFolder.create(settings, folder / "reference"), folder / "reference.log"
        status = wait(start(run.path, folder / "reference.received", log, Aim()), LIMIT)
        if status != 0:
            raise RuntimeError(f"The uninterrupted run of {name} failed:\n{log.read_text()}")
        steps = int(Path(f"{log}.steps").read_text())
        self.reference = Reference(run, time.monotonic() - began, steps)

    def run_until_finished(self, rng: random.Random, killed: Callable[[], bool]) -> None:
        """Start a run, kill and resume it until it ends.

        Args:
            killed: called after each kill; False ends the killing, and the run may go on to its end.
        """
        name = f"run-{len(list(self.folder.glob('run-*.received'))):04}"
        run = RunFolder.create(self.settings, self.folder / name)
        received, log = self.folder / f"{name}.received", self.folder / f"{name}.log"
        received.touch()
        head, go_on = (0, "0" * 64), True
        while True:
            aim, moment, limit = Aim(), "", LIMIT
            if go_on and rng.random() < 0.5:
                when = rng.choice(("before", "within", "after"))
                aim = Aim(rng.randint(1, self.reference.steps), when, rng.uniform(0, 0.001))
                moment = f"{when} a durable step"
            elif go_on:
                limit, moment = rng.uniform(0, self.reference.seconds), "at a random time"
            status = wait(start(run.path, received, log, aim, self.sabotage), limit)
            if status == 0:
                break
            if status != -signal.SIGKILL or not moment:
                text = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                self._report(f"{name}: the process ended with status {status}: {text}")
                return
            self.tally.kills[moment] += 1
            self.tally.cases[self.name] += 1
            head = self.check(name, run, received, head)
            go_on = killed()
        self.check(name, run, received, head, finished=True)
        self.tally.runs += 1

    def _report(self, problem: str) -> None:
        self.tally.violations.append(f"{self.name}: {problem}")

    def check(
        self,
        name: str,
        run: RunFolder,
        received: Path,
        head: tuple[int, str],
        finished: bool = False,
    ) -> tuple[int, str]:
        """Hold what a process left against what was received; the ledger's head."""
        seen = witnessed(received)
        checkpoint = newest(run)
        if checkpoint is not None and MODEL in {party for party, _, _ in seen}:
            last = {n[5:]: v for n, v in checkpoint.state.items() if n.startswith("last.")}
            seen.setdefault((MODEL, "train", checkpoint.round), set()).add(params_digest(last))
        rows, head, problems = read_ledger(run, head)
        problems += uncovered(rows, seen, self.settings.server.rounds)
        if self.seeded:
            problems += [f"{len(v)} values of {s}" for s, v in seen.items() if len(v) > 1]
            if checkpoint is not None:
                problems += differences(checkpoint, self.reference.run)
        if finished:
            problems += self._unlike_the_reference(run, rows, checkpoint)
            values = sum(map(len, seen.values()))
            self.tally.received += values
            self.tally.repeated += values - len(seen)
        else:
            self.tally.ahead[sum(rows.values()) - covered(rows, seen)] += 1
        for problem in problems:
            self._report(f"{name}: {problem}")
        return head

    def _unlike_the_reference(
        self, run: RunFolder, rows: Counter[Step], checkpoint: Checkpoint | None
    ) -> list[str]:
        problems = []
        if run.state()["status"] != "finished":
            problems.append(f"the run ended {run.state()['status']}")
        if checkpoint is None or checkpoint.round != self.settings.server.rounds:
            problems.append("no checkpoint of the last round")
        expected = Counter(step_of(entry) for entry in entries(self.reference.run))
        if expected - rows:
            problems.append(f"rows that the uninterrupted run has are missing: {expected - rows}")
        if self.seeded and contents(run) != contents(self.reference.run):
            problems.append("the ledger differs from that of the uninterrupted run")
        return problems


def wait(process: int, limit: float) -> int:
    """Wait for a process and its group, kill -9 after ``limit`` seconds; its exit code (-9: killed)."""
    end = time.monotonic() + limit
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            break
        time.sleep(0.0005)
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def entries(run: RunFolder) -> list[LedgerEntry]:
    """The rows of a run's ledger."""
    if not run.ledger_path.exists():
        return []
    with Ledger(run.ledger_path, read_only=True) as ledger:
        return ledger.entries()


def step_of(entry: LedgerEntry) -> Step:
    """Which release a row is for."""
    return entry.party, entry.purpose, entry.round


def contents(run: RunFolder) -> Counter[tuple[str, ...]]:
    """The multiset of a ledger's rows, but for the run's name and the time."""
    kept = ("party", "unit", "purpose", "round", "key", "views", "details")
    return Counter(tuple(str(e.content()[name]) for name in kept) for e in entries(run))


def newest(run: RunFolder) -> Checkpoint | None:
    """The last checkpoint; one that is not whole is skipped, as a resumed run does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return latest_checkpoint(run.checkpoints_path)


def read_ledger(
    run: RunFolder, head: tuple[int, str]
) -> tuple[Counter[Step], tuple[int, str], list[str]]:
    """Rows by step, the new head, and what is wrong with the chain."""
    if not run.ledger_path.exists():
        return Counter(), head, [] if head[0] == 0 else ["the ledger is gone"]
    with Ledger(run.ledger_path, read_only=True) as ledger:
        report = ledger.verify(head)
        rows = Counter(step_of(entry) for entry in ledger.entries())
    return rows, report.head, list(report.problems)


def uncovered(rows: Counter[Step], seen: dict[Step, set[str]], rounds: int) -> list[str]:
    """Values that were received, and have no row of their own."""
    problems = []
    for (party, purpose, server_round), values in seen.items():
        if party == MODEL:  # a row for each silo that could have been drawn
            found = min(rows[silo, purpose, server_round] for silo in tiny.SILOS)
        else:
            found = rows[party, purpose, server_round]
        if found < len(values):
            problems.append(
                f"{len(values)} values received of {party}, {purpose}, round {server_round}, but "
                f"{found} rows in the ledger"
            )
    return problems


def covered(rows: Counter[Step], seen: dict[Step, set[str]]) -> int:
    """Number of rows that stand for a received value."""
    return sum(
        min(count, len(seen.get((MODEL, *step[1:]), ()) or seen.get(step, ())))
        for step, count in rows.items()
    )


def differences(checkpoint: Checkpoint, reference: RunFolder) -> list[str]:
    """In what a checkpoint is not, bit for bit, the reference's of the same round."""
    other = load_checkpoint(reference.checkpoints_path / checkpoint.path.name)
    pairs = [(checkpoint.params, other.params), (checkpoint.state, other.state)]
    wrong = [
        name
        for mine, theirs in pairs
        for name in sorted(mine.keys() | theirs.keys())
        if name not in mine or name not in theirs or not torch.equal(mine[name], theirs[name])
    ]
    if checkpoint.meta != other.meta:
        wrong.append("meta")
    return [f"round {checkpoint.round}: {', '.join(wrong)} differ"] if wrong else []


def kill_runs(
    kills: int,
    folder: Path,
    *,
    seed: int = 0,
    cases: dict[str, dict[str, Any]] | None = None,
    sabotage: Callable[[], None] | None = None,
    tally: Tally | None = None,
    progress: Callable[[], None] = lambda: None,
    most_violations: int = 20,
) -> Tally:
    """Kill runs ``kills`` times, in turn in each case, and let each run come to its end.

    Args:
        folder: for all files; nothing is removed from it.
        cases: changes of the tiny experiment's settings, by name; :data:`CASES` by default.
        sabotage: called in each killed process before its run; to see that violations are found.
        tally: filled while this goes on.
        progress: called after each kill.
        most_violations: give up after so many.
    """
    tally = Tally() if tally is None else tally
    rng = random.Random(seed)
    began = time.monotonic()
    prepare(folder)
    attempts = []
    for number, (name, changes) in enumerate((cases or CASES).items()):
        plain = tiny.tree(folder / "model", folder / "words", **changes)
        settings = parse_settings(plain)
        shared_tunable(settings)  # loaded once, here; the processes are forked
        place = folder / f"case-{number}"
        attempts.append(Attempts(name, settings, place, tally, sabotage))

    def killed() -> bool:
        tally.seconds = time.monotonic() - began
        progress()
        return unfinished()

    def unfinished() -> bool:
        return sum(tally.kills.values()) < kills and len(tally.violations) < most_violations

    while unfinished():
        for attempt in attempts:
            if unfinished():
                attempt.run_until_finished(rng, killed)
    tally.seconds = time.monotonic() - began
    return tally


def prepare(folder: Path) -> None:
    """Write the tiny model and data, and import all that a run needs, before anything is forked."""
    import peft  # noqa: F401

    import fedllm.adapter.export  # noqa: F401

    torch.set_num_threads(1)  # a process with OpenMP's threads cannot be forked
    for name, save in (("model", tiny.save_encoder), ("words", tiny.save_words)):
        (folder / name).mkdir(parents=True)
        save(folder / name)


def main() -> int:
    """Kill, print what was found, and write JSON where asked; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--engine", type=int, default=0, help="kills of runs on Flower's engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", nargs="?", const="-", help="to a file, or - for printing it")
    args = parser.parse_args()
    tally, stopped = Tally(), False
    with tempfile.TemporaryDirectory(prefix="fedllm-crash-") as name:
        try:
            with Progress(transient=True) as bar:
                task = bar.add_task("kill -9", total=args.kills + args.engine)
                folder = Path(name) / "in-process"
                if args.kills:
                    kill_runs(
                        args.kills,
                        folder,
                        seed=args.seed,
                        tally=tally,
                        progress=lambda: bar.advance(task),
                    )
                if args.engine:
                    from tests.crash.engine import kill_engine_runs

                    kill_engine_runs(
                        args.engine,
                        Path(name) / "engine",
                        seed=args.seed,
                        tally=tally,
                        progress=lambda: bar.advance(task),
                    )
        except KeyboardInterrupt:
            stopped = True
    report = tally.plain() | {"complete": not stopped}
    text = json.dumps(report, indent=2)
    if args.json != "-":
        for key, value in report.items():
            print(f"{key:40} {value}")
    if args.json == "-":
        print(text)
    elif args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    if stopped:
        return 130
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
