"""Two processes never train in one run folder: the second is refused in one line, and a dead one is no obstacle."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import fedllm
from fedllm.run.folder import RunFolder, RunFolderError
from fedllm.run.lock import LOCK, sole_use
from simulations.cli.main import app

HOLD = """
import sys, time
from pathlib import Path
from fedllm.run.lock import sole_use

with sole_use(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., RunFolder]


class Enough(Exception):
    """Ends a command before its engine starts."""


def resume(path: Path) -> Result:
    return CliRunner().invoke(app, ["resume", str(path)], prog_name="fedllm")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK
    }


def test_resume_of_a_run_in_progress_is_one_line_and_a_dead_process_is_no_obstacle(
    start_run: Start,
) -> None:
    run = start_run("busy")
    before = contents(run.path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        began = time.monotonic()
        refused = resume(run.path)
        assert time.monotonic() - began < 30
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert refused.stderr.strip().splitlines() == [
            f"fedllm: Expected a run that no other process works on, {run.path} is in use by process "
            f"{holder.pid}; wait for it, or stop it first"
        ]
        assert contents(run.path) == before
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (run.path / LOCK).read_text("ascii") == f"{holder.pid}\n"  # its file is left
    with sole_use(run.path):
        pass


def test_run_and_resume_hold_the_lock_while_they_work(
    tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """What they call first is their watcher: there, another resume is refused."""
    seen: list[str] = []

    def watch(folder: RunFolder) -> Any:
        seen.append(resume(folder.path).stderr)
        raise Enough

    folder = tmp_path / "run"
    with pytest.raises(Enough):
        fedllm.run(tiny_settings(), folder, watch=watch)
    with pytest.raises(Enough):
        fedllm.resume(folder, watch=watch)
    assert len(seen) == 2
    assert all("is in use by process" in line for line in seen)
    assert not (folder / "ledger.sqlite").exists()


def test_who_waits_gets_the_lock_when_it_is_free(start_run: Start) -> None:
    run = start_run("handover")
    with (
        sole_use(run.path),
        pytest.raises(RunFolderError, match="is in use by"),
        sole_use(run.path, wait=0.3),
    ):
        raise AssertionError("two hold it")
    with sole_use(run.path, wait=0.3):
        assert (run.path / LOCK).exists()


def test_a_run_folder_that_is_read_only_is_one_line(tmp_path: Path) -> None:
    cannot = pytest.raises(
        RunFolderError, match="Expected a run folder that can be written to, got "
    )
    with cannot, sole_use(tmp_path / "absent"):
        raise AssertionError("there is nothing to lock")
