"""Kill -9 of a silo's worker at random moments, with copies of its ledger's file alone taken meanwhile.

    python -m tests.crash.ledger_kills [--kills 200] [--copies 3] [--seed 0] [--rows 20000] [--json [OUT]]

A silo as in a deployment: a ledger, a head beside it, a head in its state folder, and a worker process that answers
rounds of training with fresh noise (the tiny model; each answer is a release). It is killed at a moment drawn at
random, and the next one goes on with the same ledger. Meanwhile the file, without anything beside it, is copied
at random moments, byte by byte, as a backup program does that knows nothing of SQLite.

- A copy is *complete* where it verifies and has a row for every answer that was there before copying began; else it
  must be *refused*: torn by a commit in progress. One that verifies and lacks such a row is a violation.
- No copy may be opened for writing: it has no head.
- After each kill the ledger itself verifies, has a row for each answer, and is opened by the next worker.

The worker's process is forked from one that has loaded everything but the ledger, so that 200 kills take
minutes; no server and no Flower are part of it. Then, in this one process: what an append and opening a ledger of
``--rows`` rows cost, beside the same rows in a bare SQLite file in WAL mode, as ledgers were before, in alternation.
Exit status 1 on any violation.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedllm.data.silos import Silo, load_federation
from fedllm.settings.experiment import Settings
from fedllm.settings.io import parse_settings
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.events.constructors import dp_sgd
from privacy.guarantee import Unit
from privacy.ledger.ledger import Ledger, LedgerEntry, LedgerError, LedgerRolledBack
from privacy.ledger.schema import SCHEMA
from simulations.benchmarks.support import tiny

ROUNDS = 1_000_000
"""Planned: more than any run of this command answers."""
WARM = 5
"""Appends, and openings, before the clock counts."""


@dataclass
class Tally:
    """What was found; ``violations`` should stay empty."""

    kills: int = 0
    answers: int = 0
    rows: int = 0
    copies: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    ahead: Counter[int] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


class KilledSilo:
    """A silo whose worker is killed again and again.

    Args:
        folder: an empty folder.
        settings: the experiment, of which the first silo is taken.
        draw: of the moments.
    """

    def __init__(self, folder: Path, settings: Settings, draw: random.Random) -> None:
        self.settings, self.draw = settings, draw
        self.ledger, self.head = folder / "silo" / "ledger.sqlite", folder / "state" / "ledger.head"
        self.copies = folder / "copies"
        self.copies.mkdir()
        self.silo: Silo = load_federation(settings).silos[0]
        self.params = initial_params(shared_tunable(settings), settings)
        self.tally = Tally()
        SiloWorker(  # once, elsewhere: what a process computes once is not part of the time to the kill
            settings, self.silo, run="warm", ledger=folder / "warm.sqlite"
        ).train(SiloTask(self.params, 1, ROUNDS))

    def attempt(self, copies: int) -> None:
        """Start a worker, copy its ledger, kill it, and hold what is there against what it answered."""
        reading, writing = os.pipe()
        first = self.tally.answers + 1
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._work(writing, first)
        os.close(writing)
        answers = Answers(reading, self.tally.answers)
        answers.wait()  # it is at work
        moments = sorted(self.draw.uniform(0, 0.3) for _ in range(copies + 1))
        began = time.monotonic()
        for number, moment in enumerate(moments[:-1]):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            self._copy(answers, f"{self.tally.kills}-{number}.sqlite")
        time.sleep(max(0.0, began + moments[-1] - time.monotonic()))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self.tally.answers = answers.close()
        self.tally.kills += 1
        self._check_ledger()

    def _work(self, writing: int, first: int) -> None:
        try:
            worker = SiloWorker(
                self.settings,
                self.silo,
                run="run",
                ledger=Ledger(self.ledger, kept=(self.head,)),
            )
            for server_round in range(first, ROUNDS):
                worker.train(SiloTask(self.params, server_round, ROUNDS))
                os.write(writing, b".")  # the answer leaves
        except BaseException as error:
            os.write(2, f"the worker ended: {error}\n".encode())
        finally:
            os._exit(1)

    def _copy(self, answers: Answers, name: str) -> None:
        released = answers.count()
        copy = self.copies / name
        shutil.copyfile(self.ledger, copy)
        try:
            with Ledger(copy, read_only=True) as ledger:
                report = ledger.verify()
                rows = len(ledger.entries())
            told = "; ".join(report.problems)
        except LedgerError as error:
            told, rows = str(error), 0
        if told:
            self.tally.copies["refused"] += 1
            self.tally.refusals[told.replace(str(copy), "COPY")[:100]] += 1
        elif rows < released:
            self.tally.copies["lacking"] += 1
            self.tally.violations.append(f"{name} verifies with {rows} rows of {released} answers")
        else:
            self.tally.copies["complete"] += 1
        try:
            Ledger(copy).close()
            self.tally.violations.append(f"{name} was opened for writing without its head")
        except LedgerRolledBack:
            self.tally.copies["not opened for writing"] += 1
        except LedgerError:
            self.tally.copies["not opened for writing"] += 1
        copy.unlink()

    def _check_ledger(self) -> None:
        try:
            with Ledger(self.ledger, read_only=True, kept=(self.head,)) as ledger:
                report = ledger.verify()
                rows = len(ledger.entries())
        except LedgerError as error:
            self.tally.violations.append(f"after kill {self.tally.kills}: {error}")
            return
        self.tally.rows = rows
        self.tally.ahead[rows - self.tally.answers] += 1
        if not report.ok or report.notes:
            told = [*report.problems, *report.notes]
            self.tally.violations.append(f"after kill {self.tally.kills}: {told}")
        if rows < self.tally.answers:
            self.tally.violations.append(
                f"after kill {self.tally.kills}: {rows} rows of {self.tally.answers} answers"
            )
        # The next round has a number of its own, and a row that was recorded and not answered stays.
        self.tally.answers = rows


class Answers:
    """Counts what a worker has answered.

    Args:
        reading: the end of a pipe to which it writes a byte for each answer.
        before: answers of the workers before it.
    """

    def __init__(self, reading: int, before: int) -> None:
        self._reading, self._count = reading, before
        os.set_blocking(reading, False)

    def count(self) -> int:
        """All answers so far."""
        while True:
            try:
                found = os.read(self._reading, 4096)
            except BlockingIOError:
                return self._count
            if not found:
                return self._count
            self._count += len(found)

    def wait(self, seconds: float = 120.0) -> None:
        """Wait for an answer.

        Raises:
            RuntimeError: none came.
        """
        before, deadline = self._count, time.monotonic() + seconds
        while self.count() == before:
            if time.monotonic() > deadline:
                raise RuntimeError("The silo's worker does not answer")
            time.sleep(0.002)

    def close(self) -> int:
        """The number of all answers, of a worker that has ended."""
        found = self.count()
        os.close(self._reading)
        return found


def entry(number: int) -> LedgerEntry:
    """A row as a silo's training writes it."""
    step = dp_sgd(0.01, 1.0, 4)
    details = {"noise_multiplier": 1.0, "sampling_rate": 0.01, "clip": 0.5, "delta": 1e-5}
    views = {"server": step, "outsider": step}
    return LedgerEntry("run", "a", Unit.EXAMPLE, "train", number, f"train/{number}", views, details)


def costs(folder: Path, rows: int, times: int = 100) -> dict[str, dict[str, float]]:
    """Milliseconds (medians) of an append and of opening, beside a bare file in WAL mode; in alternation."""
    before, after = folder / "before.sqlite", folder / "after.sqlite"
    with Ledger(after) as ledger:
        ledger.extend(entry(number) for number in range(rows))
    db = sqlite3.connect(before, isolation_level=None)
    db.executescript(SCHEMA)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("ATTACH ? AS other", (str(after),))
    db.execute("DROP TRIGGER entries_append")
    db.execute("INSERT INTO entries SELECT * FROM other.entries")
    db.execute("DETACH other")

    def bare(number: int) -> None:
        content = entry(number).content()
        db.execute("BEGIN IMMEDIATE")
        marks = ",".join("?" * 12)
        row = (number + 1, "now", *content.values(), "0" * 64, "1" * 64)
        db.execute(f"INSERT INTO entries VALUES ({marks})", row)
        db.execute("COMMIT")

    def opened() -> None:
        second = sqlite3.connect(before)
        second.execute("PRAGMA quick_check(1)").fetchall()
        second.execute("SELECT * FROM entries").fetchall()
        second.close()

    found: dict[str, dict[str, float]] = {}
    with Ledger(after) as ledger:
        pairs: list[tuple[Callable[[int], Any], Callable[[int], Any]]] = [
            (bare, lambda number: ledger.append(entry(number)))
        ]
        found["append"] = _ratio(pairs[0], rows, times)
    found["open"] = _ratio((lambda _: opened(), lambda _: Ledger(after).close()), 0, 7)
    db.close()
    return found


def _ratio(
    pair: tuple[Callable[[int], Any], Callable[[int], Any]], first: int, times: int
) -> dict[str, float]:
    """Medians of both, in milliseconds by the clock and of computing, and their ratio."""
    wall: tuple[list[float], list[float]] = ([], [])
    computing: tuple[list[float], list[float]] = ([], [])
    for number in range(first, first + times + WARM):
        for which, work in enumerate(pair):
            began, cpu = time.perf_counter(), time.process_time()
            work(number)
            wall[which].append(1e3 * (time.perf_counter() - began))
            computing[which].append(1e3 * (time.process_time() - cpu))
    medians = [statistics.median(values[WARM:]) for values in (*wall, *computing)]
    names = ("before_ms", "after_ms", "before_computing_ms", "after_computing_ms")
    found = dict(zip(names, medians, strict=True))
    return found | {"ratio": medians[1] / medians[0], "ratio_computing": medians[3] / medians[2]}


def main() -> None:
    """Kill, copy, measure, print; exit status 1 on any violation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--copies", type=int, default=3, help="of the file, before each kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--rows", type=int, default=20_000, help="of the ledger that is timed; 0: none"
    )
    parser.add_argument("--json", nargs="?", const="-", help="to a file, or - for printing it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, save in (("model", tiny.save_encoder), ("words", tiny.save_words)):
            (folder / part).mkdir()
            save(folder / part)
        changes = {"privacy.randomness": "os", "privacy.epsilon": None, "client.local_steps": 1}
        settings = parse_settings(tiny.tree(folder / "model", folder / "words", **changes))
        silo = KilledSilo(folder, settings, random.Random(args.seed))
        while silo.tally.kills < args.kills:
            silo.attempt(args.copies)
        times = costs(folder, args.rows) if args.rows else {}
    tally = silo.tally
    result = {
        "kills": tally.kills,
        "rows": tally.rows,
        "kills_by_rows_without_an_answer": {str(k): v for k, v in sorted(tally.ahead.items())},
        "copies": dict(tally.copies),
        "refusals": dict(tally.refusals.most_common(5)),
        "violations": tally.violations,
        "costs": times,
    }
    text = json.dumps(result, indent=2)
    if args.json and args.json != "-":
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    sys.exit(1 if tally.violations else 0)


if __name__ == "__main__":
    main()
