"""The process that runs trials: ``python -m simulations.sweep.worker`` reads run folders, one a line, from
stdin. It runs each one's experiment, or resumes it, and evaluates each evaluation example with the model
it ends with. Libraries and backbone are loaded once a process.

What it tells its parent are JSON lines on stdout; everything else goes to the log that comes with the
folder. It ends with its parent: when stdin is closed it stops at once, as in a crash, which a resume
repairs. SIGINT and SIGTERM end it after the messages under way.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

from fedllm.files.durable import plain
from fedllm.run.folder import RunFolder
from fedllm.run.lock import sole_use

EVALUATED = "cell.json"
"""Files that a finished trial adds to its run folder: answers by example, and the cost of a round."""
ORPHANED = 75
_DONE = ("finished", "stopped")


class ProgressReporter:
    """Tells the parent of rounds, and keeps the processor seconds of each.

    Args:
        handle: file descriptor of the lines.
    """

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.begin()

    def begin(self) -> None:
        """Begin another trial."""
        self.seconds: list[float] = []
        self._last: float | None = None

    def send(self, **line: Any) -> None:
        """Write one line to the parent, in one write."""
        os.write(self.handle, (json.dumps(plain(line)) + "\n").encode())

    def record(self, record: Mapping[str, Any]) -> None:
        """Report a record of the run; see :class:`server.monitoring.Callback`."""
        if record["kind"] == "round":
            now = time.process_time()
            if self._last is not None:
                self.seconds.append(now - self._last)
            self._last = now
            self.send(kind="round", round=record["round"])
        elif record["kind"] == "evaluation" and record["where"] == "server":
            self.send(**{key: record[key] for key in record if key != "time"})
        elif record["kind"] == "warning":
            print(f"warning: {record['message']}", file=sys.stderr)

    def close(self) -> None:
        """Note that the run is over."""


def run_trial(run: RunFolder, reporter: ProgressReporter, stop: threading.Event) -> str:
    """Run or resume a run folder's experiment and evaluate it; return the run's status."""
    from fedllm.data.silos import load_federation
    from simulations.in_process import federate
    from simulations.runner import begin_data

    status = str(run.state()["status"])
    if status not in _DONE:
        begin_data(run, load_federation(run.settings()))
        status = federate(run, stop=stop, callbacks=[reporter])
    if status not in _DONE:
        return status
    if not (run.path / "report.json").exists():  # killed between the last round and the report
        from fedllm.report import write_report

        write_report(run)
    if run.read_json(EVALUATED) is None:
        cost = statistics.median(reporter.seconds) if len(reporter.seconds) > 1 else None
        run.write_json(EVALUATED, {"answers": answers(run), "processor_seconds_a_round": cost})
    return status


def answers(run: RunFolder) -> list[list[Any]] | None:
    """Return (key, right or not) of each of the server's evaluation examples, by the run's last model.

    The key is a function of the example's text alone, the same in every run. None where the task has no
    right answers.
    """
    from fedllm.adapter.predict import Predictor
    from fedllm.data.holdout import text_hash
    from fedllm.data.public import evaluation_set

    settings = run.settings()
    if settings.task.kind != "classification":
        return None
    records = evaluation_set(settings).records
    if not records:
        return None
    found = Predictor(run).predict(list(records))
    return [
        [
            f"{text_hash(record, settings.task.text, 0):.16f}",
            answer["label"] == str(record[settings.task.target]),
        ]
        for record, answer in zip(records, found, strict=True)
    ]


def main() -> None:
    """Run the trials of the folders that the parent names, until it names no more."""
    reporter = ProgressReporter(os.dup(1))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    tasks: queue.Queue[dict[str, str]] = queue.Queue()
    threading.Thread(target=_take_tasks, args=(tasks,), daemon=True).start()
    while not stop.is_set():
        try:
            task = tasks.get(timeout=0.2)
        except queue.Empty:
            continue
        log = os.open(task["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)  # whatever is printed goes to the trial's log
        os.close(log)
        reporter.begin()
        try:
            run = RunFolder.open(task["run"])
            with sole_use(run.path, wait=30.0):
                status = run_trial(run, reporter, stop)
                message = str(run.state()["message"])
        except Exception as error:
            traceback.print_exc()
            status, message = "failed", f"{type(error).__name__}: {error}"
        reporter.send(kind="end", status=status, message=message)
    os._exit(0)  # without waiting for threads of a run that failed


def _take_tasks(tasks: queue.Queue[dict[str, str]]) -> None:
    """Queue the parent's lines; where its end is closed, end this process at once."""
    for line in sys.stdin.buffer:
        tasks.put(json.loads(line))
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
