"""What a sweep's cells take: seconds of a round, learnt from rounds that were run."""

from __future__ import annotations

import queue
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedllm.run_folder import RunFolder
from simulations.sweep.execute import Lines, Worker
from simulations.sweep.plan import Cell, Sweep

TWO_PASSES = ("per-example", "private-ascent", "batch")
"""Forms of awp that differentiate twice: about twice the time, until such a round was run."""


class Costs:
    """Seconds of a round by data set and arm.

    What is not known of an arm is taken from another arm on the same data set: as it is, or twice as much
    where it takes two passes and the other one.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.known: dict[tuple[str, str], float] = {}
        self._passes: dict[tuple[str, str], int] = {}
        for cell in sweep.cells:
            self._passes[cell.dataset, cell.arm] = _passes(cell)
            seconds = _seconds(sweep, cell)
            if seconds is not None:
                self.known[cell.dataset, cell.arm] = seconds

    def learn(self, cell: Cell, seconds: float) -> None:
        """A round of this cell took so long."""
        self.known[cell.dataset, cell.arm] = seconds

    def of(self, cell: Cell, rounds: int) -> float | None:
        """Seconds for so many rounds; None where nothing is known of the data set."""
        place = cell.dataset, cell.arm
        if place in self.known:
            return rounds * self.known[place]
        for (dataset, arm), seconds in self.known.items():
            if dataset == cell.dataset:
                return rounds * seconds * self._passes[place] / self._passes[dataset, arm]
        return None

    def measure(self, cell: Cell) -> None:
        """Run three rounds of a cell in a folder of its own, which is thrown away, and take their length.

        Raises:
            ValueError: they failed; the message has the process's last line.
        """
        changes: dict[str, Any] = {
            "server": {"rounds": 3},
            "layers": {"form": "none"},
            "evaluation": {"max_examples": 32, "every": 3},
            "privacy": {"ledger": None},
        }
        settings = cell.settings
        parts = {
            name: getattr(settings, name).model_copy(update=update)
            for name, update in changes.items()
        }
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder.create(settings.model_copy(update=parts), Path(folder) / "run")
            lines: Lines = queue.Queue()
            worker = Worker(settings.simulation.threads, lines)
            try:
                worker.begin(cell, run.path, Path(folder) / "log")
                line: Mapping[str, Any] | None = {"kind": "round"}
                while line is not None and line["kind"] != "end":
                    _, line = lines.get()
            finally:
                worker.end()
                worker.process.wait()
            rounds = [r["seconds"] for r in run.metrics() if r["kind"] == "round"]
            if line is None or line["status"] != "finished":
                why = "its process ended" if line is None else line["message"]
                raise ValueError(f"A round of {cell.title} could not be measured: {why}")
        self.learn(cell, min(rounds[1:]))


def _passes(cell: Cell) -> int:
    return 2 if cell.settings.awp.form in TWO_PASSES else 1


def _seconds(sweep: Sweep, cell: Cell) -> float | None:
    """Mean seconds of the rounds that a cell has run."""
    path = sweep.run_path(cell)
    if not path.exists():
        return None
    found = [r["seconds"] for r in RunFolder.open(path).metrics() if r["kind"] == "round"]
    return sum(found) / len(found) if found else None
