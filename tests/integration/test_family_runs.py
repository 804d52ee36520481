"""Whole runs of models that cannot take a prefix: a state-space model, DeBERTa, and an encoder-decoder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from whole_runs import final

from fedllm.adapter.export import export_adapter
from fedllm.adapter.merge import ExportError, export_merged
from fedllm.adapter.predict import Predictor
from fedllm.run.folder import RunFolder
from fedllm.training.tunable import initial_params, shared_tunable
from simulations.architectures.families import FAMILIES, tiny_model

CASES = {"Mamba": "generation", "DeBERTa v3": "classification", "T5": "generation"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_of_a_model_without_prefixes(
    name: str,
    start_run: Callable[..., RunFolder],
    in_process: Callable[..., str],
    encoder_folder: Path,
    decoder_folder: Path,
    tmp_path: Path,
) -> None:
    (family,) = [family for family in FAMILIES if family.name == name]
    encoder = family.kind == "encoder"
    folder = tmp_path / "model"
    shutil.copytree(encoder_folder if encoder else decoder_folder, folder)
    for file in ("config.json", "model.safetensors", "generation_config.json"):
        (folder / file).unlink(missing_ok=True)
    tiny_model(family).save_pretrained(folder)
    changes: dict[str, Any] = {
        "model.name": str(folder),
        "adapter.form": "lora",
        "adapter.rank": 2,
        "server.rounds": 2,
    }
    if not encoder:
        changes |= {"task.kind": "generation", "task.target": "answer", "task.labels": None}
        changes |= {"evaluation.generate": 1, "evaluation.max_new_tokens": 3}
    run = start_run("run", **changes)
    assert in_process(run) == "finished", run.state()["message"]
    settings = run.settings()
    tunable = shared_tunable(settings)
    params, begun = final(run), initial_params(tunable, settings)
    assert tunable.backbone.no_prefix is not None
    assert all(bool(value.isfinite().all()) for value in params.values())
    assert any(not torch.equal(value, begun[n]) for n, value in params.items() if "lora" in n)
    options: Any = {} if encoder else {"max_new_tokens": 3}
    (answer,) = Predictor(run).predict(["good film"], **options)
    assert ("label" in answer) if encoder else isinstance(answer, str)
    exported = export_adapter(run, tmp_path / "out")
    assert Predictor(tmp_path / "out").predict(["good film"], **options) == [answer]
    if name == "T5":
        assert "an encoder-decoder's adapter" in exported.why_not_peft
        with pytest.raises(ExportError, match="got the encoder-decoder model"):
            export_merged(run, tmp_path / "merged")
    elif name == "Mamba":  # PEFT takes in_proj and x_proj alone
        assert "'out_proj' is incompatible with Mamba-based models" in exported.why_not_peft
    else:
        assert exported.peft, exported.why_not_peft
