"""Flower's Ray engine and the command line, as users start them: determinism and interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder, RunFolderError
from fedllm.settings.io import to_toml
from privacy.ledger.ledger import Ledger
from simulations.cli.resume import resume

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 30
CHANGES = {
    "server.rounds": ROUNDS,
    "server.checkpoint_every": 3,
    "evaluation.every": 20,
    "evaluation.clients": "private",
    "evaluation.clients_holdout": 0.2,
    "privacy.epsilon": None,
}


def final(path: Path) -> dict[str, Tensor]:
    checkpoint = latest_checkpoint(path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.round == ROUNDS
    return checkpoint.params


def spent(path: Path) -> Counter[Any]:
    with Ledger(path / "ledger.sqlite", read_only=True) as ledger:
        assert ledger.verify().ok
        return Counter(
            (e.party, e.purpose, e.round, e.key, str(e.view("server"))) for e in ledger.entries()
        )


def assert_same(first: Path, second: Path) -> None:
    one, two = final(first), final(second)
    assert sorted(one) == sorted(two)
    for name in one:
        assert torch.equal(one[name], two[name]), name
    assert spent(first) == spent(second)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def reference(
    folder: Path, tiny_settings: Callable[..., Any], in_process: Callable[..., str]
) -> Path:
    """The same experiment without interruption and without an engine, in this process."""
    run = RunFolder.create(tiny_settings(**CHANGES), folder / "reference")
    assert in_process(run) == "finished"
    return run.path


def command(*words: str | Path) -> subprocess.Popen[str]:
    """``fedllm ...`` as a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "simulations.cli.main", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts commands, and ends what a failed test leaves."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str | Path) -> subprocess.Popen[str]:
        processes.append(command(*words))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_round(path: Path, server_round: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    metrics = path / "metrics.jsonl"
    while time.monotonic() < end:
        if metrics.exists() and f'"round": {server_round},' in metrics.read_text(encoding="utf-8"):
            return
        if process.poll() is not None:
            raise AssertionError(f"ended too early:\n{process.communicate()[0]}")
        time.sleep(0.02)
    raise AssertionError(f"round {server_round} never came")


def finish(process: subprocess.Popen[str], status: int) -> str:
    output = process.communicate(timeout=150)[0]
    assert process.returncode == status, output
    return output


@pytest.mark.slow
def test_ctrl_c_then_resume_gives_the_same_bits(
    folder: Path,
    reference: Path,
    tiny_settings: Callable[..., Any],
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    """SIGINT to the whole process group, as a terminal sends it; two workers, then one process."""
    experiment = folder / "experiment.toml"
    settings = tiny_settings(**CHANGES, **{"simulation.workers": 2})
    experiment.write_text(to_toml(settings), encoding="utf-8")
    run = folder / "interrupted"
    process = started("run", experiment, "--run", run)
    wait_for_round(run, 4, process)
    os.killpg(process.pid, signal.SIGINT)
    output = finish(process, 130)
    assert "resume" in output
    assert "Traceback" not in output
    state = RunFolder.open(run).state()
    assert state["status"] == "interrupted"
    assert 3 <= state["round"] < ROUNDS, "the interruption came too late to test anything"
    output = finish(started("resume", run), 0)
    assert "Traceback" not in output
    assert_same(run, reference)
    assert RunFolder.open(run).state()["status"] == "finished"
    with pytest.raises(RunFolderError, match="is finished"):
        resume(run)


@pytest.mark.slow
def test_killed_then_resumed_gives_the_same_bits(
    folder: Path,
    reference: Path,
    tiny_settings: Callable[..., Any],
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    """SIGKILL to the driver alone, mid-round: nothing can be saved or told any more."""
    experiment = folder / "killed.toml"
    experiment.write_text(to_toml(tiny_settings(**CHANGES)), encoding="utf-8")
    run = folder / "killed"
    process = started("run", experiment, "--run", run)
    wait_for_round(run, 8, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert RunFolder.open(run).state()["status"] == "running"
    finish(started("resume", run), 0)
    assert_same(run, reference)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(
    workers: int, folder: Path, reference: Path, tiny_settings: Callable[..., Any]
) -> None:
    from simulations.runner import simulate

    settings = tiny_settings(**CHANGES, **{"simulation.workers": workers})
    run = RunFolder.create(settings, folder / f"workers-{workers}")
    assert simulate(run) == "finished"
    assert_same(run.path, reference)
