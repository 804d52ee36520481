"""Runs a sweep's trials in worker processes: as many as there are cores, each with one trial at a time."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedllm.run.folder import RunFolder, RunFolderError
from simulations.sweep.plan import Sweep, Trial
from simulations.sweep.worker import EVALUATED

PATIENCE = 20.0
"""Seconds that a worker has to end after it was told to for the last time."""


class View(Protocol):
    """Watches the trials."""

    def started(self, trial: Trial, first_round: int) -> None:
        """Show that a trial's worker has started."""

    def moved(self, trial: Trial, done: int) -> None:
        """Show that a trial has finished a round."""

    def ended(self, trial: Trial, status: str, message: str) -> None:
        """Show that a trial's worker has ended."""


@dataclass
class Outcome:
    """Results of the trials' workers."""

    finished: list[Trial] = field(default_factory=list)
    kept: list[Trial] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Title of a trial -> why, and where its log is."""
    interrupted: bool = False


class Worker:
    """A process that runs trials, one after the other; its lines go into a queue.

    Args:
        lines: takes (worker, line) for each line, and (worker, None) when the process has ended.
    """

    def __init__(self, threads: int, lines: Lines) -> None:
        self.trial: Trial | None = None
        self.log: Path | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulations.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=worker_environment(threads),
            start_new_session=True,  # a terminal's Ctrl-C reaches the parent alone
        )
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()

    def begin(self, trial: Trial, run: Path, log: Path) -> None:
        """Give it a trial.

        Raises:
            OSError: the process has ended.
        """
        self.trial, self.log = trial, log
        if self.process.stdin is not None:
            self.process.stdin.write(
                json.dumps({"run": str(run), "log": str(log)}).encode() + b"\n"
            )
            self.process.stdin.flush()

    def end(self) -> None:
        """Let an idle process go: it stops where its stdin is closed."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def _read(self, lines: Lines) -> None:
        for line in self.process.stdout or ():
            with contextlib.suppress(ValueError):
                lines.put((self, json.loads(line)))
        lines.put((self, None))


Lines = queue.Queue[tuple[Worker, Mapping[str, Any] | None]]


def is_done(sweep: Sweep, trial: Trial) -> bool:
    """Return True if the trial's run came to its end, and was judged."""
    path = sweep.run_path(trial)
    if not path.exists():
        return False
    run = RunFolder.open(path)
    done = run.state()["status"] in ("finished", "stopped")
    return done and (run.path / EVALUATED).exists() and (run.path / "report.json").exists()


def rounds_done(sweep: Sweep, trial: Trial) -> int:
    """Return the rounds that the trial's last checkpoint has behind it."""
    path = sweep.run_path(trial)
    return int(RunFolder.open(path).state()["round"]) if path.exists() else 0


def worker_count(sweep: Sweep, wanted: int | None) -> int:
    """Return the number of workers: one for each core and its share of threads, no more than trials."""
    threads = max((trial.settings.simulation.threads for trial in sweep.chosen), default=1)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(wanted or cores // threads, len(sweep.chosen)))


def execute(
    sweep: Sweep,
    view: View,
    *,
    workers: int,
    stop: threading.Event,
    give_up: threading.Event,
    after: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run the trials that are not done.

    Args:
        stop: set by another thread: trials under way end after the messages under way, none begins.
        give_up: set by another thread: what is under way is killed; a resume repairs it.
        after: called after each trial that came to its end.
    """
    outcome = Outcome()
    waiting: list[Trial] = []
    for trial in sweep.chosen:
        (outcome.kept if is_done(sweep, trial) else waiting).append(trial)
    lines: Lines = queue.Queue()
    pool: list[Worker] = []
    told = False

    def ended(worker: Worker, status: str, message: str) -> None:
        trial, worker.trial = worker.trial, None
        if trial is None:
            return
        if status in ("finished", "stopped"):
            outcome.finished.append(trial)
        elif stop.is_set():
            status = "interrupted"
        else:
            status = "failed"
            outcome.failed[trial.title] = f"{message} (log: {worker.log})"
        view.ended(trial, status, message)
        if status in ("finished", "stopped"):
            after()

    try:
        while (waiting and not stop.is_set()) or any(worker.trial for worker in pool):
            while waiting and not stop.is_set():
                idle = next((worker for worker in pool if worker.trial is None), None)
                if idle is None:
                    if len(pool) >= workers:
                        break
                    idle = Worker(waiting[0].settings.simulation.threads, lines)
                    pool.append(idle)
                trial = waiting.pop(0)
                try:
                    idle.begin(trial, *_prepare(sweep, trial))
                    view.started(trial, rounds_done(sweep, trial))
                except (OSError, RunFolderError) as error:
                    idle.trial = trial
                    ended(idle, "failed", str(error))
            if stop.is_set() and not told:
                told = True
                for worker in pool:
                    worker.process.terminate()
            if give_up.is_set():
                for worker in pool:
                    worker.process.kill()
            try:
                worker, line = lines.get(timeout=0.2)
            except queue.Empty:
                continue
            if line is None:
                pool.remove(worker)
                code = worker.process.wait()
                ended(worker, "failed", f"its process ended with status {code}")
            elif line["kind"] == "round" and worker.trial is not None:
                view.moved(worker.trial, int(line["round"]))
            elif line["kind"] == "end":
                ended(worker, str(line["status"]), str(line["message"]))
    finally:
        _end(pool)
    outcome.interrupted = stop.is_set()
    return outcome


def _end(pool: Sequence[Worker]) -> None:
    """Leave no process behind."""
    for worker in pool:
        worker.end()
    deadline = time.monotonic() + PATIENCE
    for worker in pool:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def _prepare(sweep: Sweep, trial: Trial) -> tuple[Path, Path]:
    """Return the trial's run folder, made if there is none, and its log."""
    path = sweep.run_path(trial)
    if not path.exists():
        _create(trial, path)
    logs = sweep.folder / "logs"
    logs.mkdir(exist_ok=True)
    return path, logs / f"{path.name}.log"


def worker_environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker: its threads, this fedllm, nothing told to anybody."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def _create(trial: Trial, path: Path) -> None:
    """Make a trial's run folder whole: next to its place, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".new-{uuid.uuid4().hex}"
    try:
        RunFolder.create(trial.settings, beside)
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def clear_half_made(sweep: Sweep) -> None:
    """Remove run folders that a crash left half made: nothing has run in them."""
    for folder in sweep.runs_folder.glob(".new-*"):
        shutil.rmtree(folder, ignore_errors=True)
