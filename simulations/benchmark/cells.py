"""Whole runs as cells of a table: each run once, with its figures kept beside it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedllm.run_folder import RunFolder
from fedllm.settings_io import load_settings
from simulations.in_process import federate

FILE = "cell.json"


def run_cell(
    experiment: Path,
    folder: Path,
    overrides: list[str],
    figures: Callable[[RunFolder], dict[str, Any]],
) -> dict[str, Any]:
    """Figures of one run, with ``minutes`` that it took; runs it (or goes on with it) where it is not finished.

    Args:
        figures: of a run that is over.

    Raises:
        RuntimeError: the run failed.
    """
    began = time.monotonic()
    if (folder / FILE).exists():
        return dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
    if (folder / "state.json").exists():
        run = RunFolder.open(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        run = RunFolder.create(load_settings(experiment, overrides), folder)
    status = federate(run)
    if status not in ("finished", "stopped"):
        raise RuntimeError(f"{folder}: {status}, {run.state()['message']}")
    found = figures(run) | {"minutes": (time.monotonic() - began) / 60}
    run.write_json(FILE, found)
    return found


def evaluations(run: RunFolder) -> list[dict[str, Any]]:
    """The server's evaluations, in order."""
    return [r for r in run.metrics() if r["kind"] == "evaluation" and r["where"] == "server"]


def rounds(run: RunFolder) -> list[dict[str, Any]]:
    """The records of the rounds, in order."""
    return [r for r in run.metrics() if r["kind"] == "round"]
