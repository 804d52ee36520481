"""``fedllm export`` as a user meets it: an adapter, a merged model, one line for each refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simulations.cli.main import app
from tests.support.tuned_runs import tuned_run


@pytest.fixture
def run_of(tmp_path: Path, decoder_folder: Path) -> Callable[[str], Path]:
    def make(form: str) -> Path:
        run, _, _ = tuned_run(
            tmp_path, decoder_folder, "words", spread=0.1, adapter={"form": form, "rank": 2}
        )
        return run.path

    return make


def call(*words: object, status: int = 0) -> Any:
    result = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "160"})
    assert result.exit_code == status, result.output
    return result


def test_lora_goes_out_in_each_format(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run = run_of("lora")
    assert call("export", run, tmp_path / "a", "--gguf").stdout == f"{tmp_path / 'a'}\n"
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"adapter.json", "adapter_model.safetensors", "adapter.gguf"} <= names
    done = call("export", run, tmp_path / "m", "--merge")
    assert done.stdout == f"{tmp_path / 'm'}\n"
    assert "weights in float32" in done.stderr
    assert {"config.json", "model.safetensors"} <= {p.name for p in (tmp_path / "m").iterdir()}
    answer = call("predict", tmp_path / "a", "w5 w6").stdout
    assert answer == call("predict", run, "w5 w6").stdout


def test_refusals_are_one_line(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run = run_of("prefix")
    for words, said in (
        (["--merge"], "export it without merging"),
        (["--gguf"], "Expected LoRA for a GGUF adapter"),
        (["--merge", "--gguf"], "give one of them"),
    ):
        failed = call("export", run, tmp_path / "out", *words, status=2)
        assert failed.stdout == ""
        assert failed.stderr.count("\n") == 1
        assert said in failed.stderr
        assert not (tmp_path / "out").exists()
