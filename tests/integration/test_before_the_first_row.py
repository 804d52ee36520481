"""What ends a run before anything is spent, at once and in one line; and what never ends one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedllm.data.silos import load_federation
from fedllm.models.embedded import ModelError
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import METRICS, RunFolder
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.batch.rehearsal import rehearse
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.ledger.ledger import Ledger
from simulations.runner import prepare, simulate

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def overflowing(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder with weights that overflow in float16."""
    folder = tmp_path_factory.mktemp("overflowing") / "m"
    shutil.copytree(encoder_folder, folder)
    weights = load_file(folder / "model.safetensors")
    large = {key: value * (3e4 if "dense" in key else 1) for key, value in weights.items()}
    save_file(large, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("access", ["white-box", "black-box"])
def test_a_model_whose_loss_is_nan_costs_nothing(
    access: str, overflowing: Path, start_run: Start, in_process: Federate
) -> None:
    changes: dict[str, Any] = {"model.name": str(overflowing), "model.dtype": "float16"}
    if access == "black-box":
        changes |= {"model.access": access, "client.local_steps": 1, "client.learning_rate": 1.0}
    run = start_run("nan", **changes)
    assert in_process(run) == "failed"
    message = run.state()["message"]
    assert "Expected a finite loss before training, got NaN" in message
    assert "float16 overflows" in message
    assert "\n" not in message
    assert not run.ledger_path.exists() or not Ledger(run.ledger_path).entries()


def test_a_silo_stops_it_by_itself(
    overflowing: Path, tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """Whatever a server has seen: before the first row, and with words of public values alone."""
    settings = tiny_settings(**{"model.name": str(overflowing), "model.dtype": "float16"})
    silo = load_federation(settings).silos[0]
    worker = SiloWorker(settings, silo, run="r", ledger=tmp_path / "ledger.sqlite")
    with pytest.raises(ModelError, match="Expected a finite"):
        worker.train(SiloTask(initial_params(worker.tunable, settings), 1, 3))
    assert worker.ledger.entries() == []


def test_a_gradient_that_is_not_finite_is_found_too(
    tiny_settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finite loss with an infinite slope: the square root of a bias that is zero."""
    settings = tiny_settings()
    tunable = shared_tunable(settings)
    params = initial_params(tunable, settings)
    rehearse(tunable, params, gradients=True)
    losses = tunable.losses

    def steep(point: Mapping[str, torch.Tensor], batch: Any) -> torch.Tensor:
        return losses(point, batch) + point["head.bias"].abs().sqrt().sum(1)

    monkeypatch.setattr(tunable, "losses", steep)
    with pytest.raises(ModelError, match=r"finite gradient of head\.bias before training, got"):
        rehearse(tunable, params, gradients=True)


def test_an_engine_of_another_program_is_named_at_once(
    tiny_settings: Callable[..., Any], start_run: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    began = time.monotonic()
    ray = {"simulation.engine": "ray"}
    for call in (lambda: prepare(tiny_settings(**ray)), lambda: simulate(start_run("ray", **ray))):
        with pytest.raises(ValueError, match=r"got RAY_ADDRESS=127\.0\.0\.1:6379; unset it"):
            call()
    assert time.monotonic() - began < 5
    prepare(tiny_settings())  # in this process: nothing is asked of Ray
    monkeypatch.setenv("RAY_ADDRESS", "local")
    prepare(tiny_settings(**ray))


@pytest.mark.slow
def test_the_command_says_so_in_one_line(word_files: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "e.toml"
    experiment.write_text(f'[data]\nsource = "files"\npath = "{word_files}"\n', encoding="utf-8")
    command = [sys.executable, "-m", "simulations.cli.main", "run", str(experiment)]
    command += ["--set", "simulation.engine=ray"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "10.0.0.1:1"},
        timeout=120,
    )
    assert done.returncode != 0
    assert len((done.stderr + done.stdout).strip().splitlines()) == 1
    assert "RAY_ADDRESS=10.0.0.1:1" in done.stderr


def test_a_log_that_cannot_be_written_costs_nothing(
    start_run: Start, in_process: Federate, caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics file and the silos' logs are folders from the first round on: no one can write there."""
    run = start_run("logs")

    class Spoil:
        def record(self, record: Mapping[str, Any]) -> None:
            if record["kind"] != "start":
                return
            (run.path / METRICS).unlink()
            (run.path / METRICS).mkdir()
            for silo in record["silos"]:
                run.silo_log_path(silo).parent.mkdir(exist_ok=True)
                if run.silo_log_path(silo).exists():
                    run.silo_log_path(silo).unlink()
                run.silo_log_path(silo).mkdir()

        def close(self) -> None:
            raise OSError("no space left")

    (run.path / METRICS).touch()
    assert in_process(run, callbacks=[Spoil()]) == "finished"
    saved = latest_checkpoint(run.checkpoints_path)
    assert saved is not None
    assert saved.round == 3
    with Ledger(run.ledger_path, read_only=True) as ledger:
        assert len(ledger.entries(party="alpha")) == 3
    assert "MetricsFile cannot write" in caplog.text
    assert (run.path / "report.json").exists()
