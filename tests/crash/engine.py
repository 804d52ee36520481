"""Kill -9 to runs on Flower's engine: the driver at a random moment, or with all its worker processes.

As :mod:`tests.crash.crash`, slower, and with several processes that write to one ledger; what
was received is witnessed where the server takes the replies.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Message

from fedllm.run.folder import RunFolder
from fedllm.settings.io import parse_settings
from simulations.benchmarks.support import tiny
from tests.crash.child import Witness
from tests.crash.crash import (
    CASES,
    LIMIT,
    Attempts,
    Tally,
    prepare,
)

SEEDED = "seeded noise by the silos"
ROUNDS = {"server.rounds": 20, "simulation.engine": "ray", "simulation.workers": 2}


def kill_engine_runs(
    kills: int,
    folder: Path,
    *,
    seed: int = 0,
    tally: Tally,
    progress: Callable[[], None] = lambda: None,
) -> Tally:
    """Kill one run after the other on the engine ``kills`` times in all, each once or twice.

    The uninterrupted run, which all are held against, goes through the in-process grid.
    """
    rng = random.Random(seed)
    prepare(folder)
    plain = tiny.tree(folder / "model", folder / "words", **(CASES[SEEDED] | ROUNDS))
    attempts = Attempts(f"engine, {SEEDED}", parse_settings(plain), folder / "case", tally)
    began, done = time.monotonic(), 0
    while done < kills and not tally.violations:
        run = RunFolder.create(attempts.settings, folder / "case" / f"run-{done:04}")
        received = folder / "case" / f"run-{done:04}.received"
        received.touch()
        head = (0, "0" * 64)
        for _ in range(min(2, kills - done)):
            process = start(run.path, received)
            if not wait_until_it_trains(received, process):
                break
            time.sleep(rng.uniform(0, 2.0))
            if process.poll() is None:
                kill(process, everything=rng.random() < 0.5)
                done += 1
                tally.kills["on the engine"] += 1
                tally.cases[attempts.name] += 1
                head = attempts.check(run.path.name, run, received, head)
                progress()
        process = start(run.path, received)
        output = process.communicate(timeout=LIMIT)[0]
        if process.returncode:
            tally.violations.append(f"the resumed run ended with {process.returncode}: {output}")
        attempts.check(run.path.name, run, received, head, finished=True)
        tally.runs += 1
    tally.seconds += time.monotonic() - began
    return tally


def start(run: Path, received: Path) -> subprocess.Popen[str]:
    """The driver, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.crash.engine", str(run), str(received)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_until_it_trains(received: Path, process: subprocess.Popen[str]) -> bool:
    """Wait for the next reply; whether one came before the run ended."""
    before, end = received.stat().st_size, time.monotonic() + LIMIT
    while time.monotonic() < end and process.poll() is None:
        if received.stat().st_size > before:
            return True
        time.sleep(0.02)
    return False


def kill(process: subprocess.Popen[str], everything: bool) -> None:
    """kill -9 to the driver, whose workers end when they notice, or to its whole session at once."""
    for member in session(process.pid) if everything else [process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    process.communicate(timeout=LIMIT)


def session(leader: int) -> list[int]:
    """Processes of the session that ``leader`` leads, it first: only what it started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.getsid(int(entry.name)) == leader:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return sorted(found, key=lambda member: member != leader)


def drive(run: RunFolder, received: Path) -> int:
    """Go on with a run on the engine; each reply is witnessed before the strategy sees it."""
    import fedllm.adapter.export
    import fedllm.report
    from server import strategy
    from simulations.runner import simulate

    for module, name in (
        (fedllm.adapter.export, "export_adapter"),
        (fedllm.report, "write_report"),
    ):
        setattr(module, name, lambda *args: None)
    witness, exchange = Witness(received), strategy.exchange

    def witnessed(grid: Any, tasks: Any, *, on_reply: Any = None, **options: Any) -> Any:
        by_node = {task.metadata.dst_node_id: task for task in tasks}

        def received_one(reply: Message) -> None:
            witness(by_node[reply.metadata.src_node_id], reply)
            if on_reply is not None:
                on_reply(reply)

        return exchange(grid, tasks, on_reply=received_one, **options)

    setattr(strategy, "exchange", witnessed)  # noqa: B010
    return 0 if simulate(run) == "finished" else 1


if __name__ == "__main__":
    sys.exit(drive(RunFolder.open(sys.argv[1]), Path(sys.argv[2])))
