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
from fedllm.settings.sections import SimulationSettings
from privacy.ledger.ledger import Ledger
from simulations import ray_engine
from simulations.cli.resume import resume
from simulations.ray_engine import MOST_START_SECONDS, START_SECONDS, start_seconds
from simulations.runner import simulate

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


@pytest.mark.parametrize("engine", ["in-process", pytest.param("ray", marks=pytest.mark.slow)])
def test_ctrl_c_then_resume_gives_the_same_bits(
    engine: str,
    folder: Path,
    reference: Path,
    tiny_settings: Callable[..., Any],
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    """SIGINT to the whole process group, as a terminal sends it."""
    experiment = folder / f"{engine}.toml"
    settings = tiny_settings(**CHANGES, **{"simulation.engine": engine, "simulation.workers": 2})
    experiment.write_text(to_toml(settings), encoding="utf-8")
    run = folder / f"interrupted-{engine}"
    process = started("run", experiment, "--run", run)
    wait_for_round(run, 4, process)
    os.killpg(process.pid, signal.SIGINT)
    output = finish(process, 130)
    assert "resume" in output
    place = {"in-process": "in this process", "ray": "on Flower's Ray engine"}[engine]
    assert f"engine: 4 silos {place}" in output
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
    settings = tiny_settings(**CHANGES, **{"simulation.engine": "ray"})
    experiment.write_text(to_toml(settings), encoding="utf-8")
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
    settings = tiny_settings(
        **CHANGES, **{"simulation.engine": "ray", "simulation.workers": workers}
    )
    run = RunFolder.create(settings, folder / f"workers-{workers}")
    assert simulate(run) == "finished"
    assert_same(run.path, reference)


@pytest.mark.parametrize(
    ("changes", "silos", "expected"),
    [
        ({}, 1, "in-process"),
        ({}, 32, "in-process"),
        ({}, 33, "ray"),
        ({"workers": 2}, 4, "ray"),
        ({"workers": 1}, 4, "in-process"),
        ({"gpus_per_worker": 0.5}, 4, "ray"),
        ({"engine": "ray"}, 1, "ray"),
        ({"engine": "in-process", "workers": 2}, 1000, "in-process"),
    ],
)
def test_the_engine_by_settings_and_silos(
    changes: dict[str, Any], silos: int, expected: str
) -> None:
    assert SimulationSettings(**changes).engine_for(silos) == expected


def test_a_busy_machine_gives_ray_more_time_to_start() -> None:
    assert start_seconds(0.5, 2) == START_SECONDS
    assert start_seconds(8.0, 2) == 4 * START_SECONDS
    assert start_seconds(1000.0, 2) == MOST_START_SECONDS


def test_rays_node_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where the node registers late: Ray asks once, and gets the answer of a later look."""
    looks: list[str] = []

    def late(address: str) -> str:
        looks.append(address)
        if len(looks) < 4:
            raise RuntimeError("no node yet")
        return "node"

    monkeypatch.setattr(ray_engine.services, "get_node", late)
    with ray_engine._patient(30):
        assert ray_engine.services.get_node("here") == "node"
    assert len(looks) == 4
    looks.clear()
    with ray_engine._patient(0.1), pytest.raises(RuntimeError, match="no node yet"):
        ray_engine.services.get_node("here")


def test_an_engine_that_cannot_start_is_one_line(
    start_run: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refused(*words: Any, **options: Any) -> None:
        raise ConnectionError("The current node timed out\nduring startup.")

    monkeypatch.setattr("ray.init", refused)
    run = start_run("run", **{"simulation.engine": "ray"})
    began = time.monotonic()
    with pytest.raises(ray_engine.EngineFault) as caught:
        simulate(run)
    assert time.monotonic() - began < 60, "nobody waits for silos that cannot come"
    message = str(caught.value)
    assert "got a failure: The current node timed out during startup." in message
    assert "\n" not in message
    assert run.state()["status"] == "failed"
    assert run.state()["message"] == message
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["ray::ClientAppActor", "raylet"])
def test_a_lost_worker_is_replaced_and_a_dead_engine_named(
    victim: str,
    folder: Path,
    reference: Path,
    tiny_settings: Callable[..., Any],
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    experiment = folder / "lost.toml"
    settings = tiny_settings(**CHANGES, **{"simulation.engine": "ray", "simulation.workers": 2})
    experiment.write_text(to_toml(settings), encoding="utf-8")
    run = folder / f"lost-{victim.replace(':', '')}"
    process = started("run", experiment, "--run", run)
    wait_for_round(run, 8, process)
    killed = [pid for pid, name in children(process.pid) if name.startswith(victim)]
    os.kill(killed[0], signal.SIGKILL)
    killed_at = time.monotonic()
    output = process.communicate(timeout=150)[0]
    assert "Traceback" not in output
    if victim == "raylet":
        assert process.returncode == 2, output
        assert time.monotonic() - killed_at < 60
        lines = [line for line in output.splitlines() if "Ray engine to run" in line]
        assert len(lines) == 1, output
        assert RunFolder.open(run).state()["status"] == "failed"
        return
    assert process.returncode == 0, output
    assert_same(run, reference)


def children(parent: int) -> list[tuple[int, str]]:
    """Process id and name of all that descend from a process."""
    found, below = {}, {parent}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text()
            name = (path / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        found[int(path.name)] = (int(stat.rpartition(")")[2].split()[1]), name)
    for _ in range(5):
        below |= {pid for pid, (above, _) in found.items() if above in below}
    return [(pid, found[pid][1].rpartition("/")[2]) for pid in below - {parent} if pid in found]
