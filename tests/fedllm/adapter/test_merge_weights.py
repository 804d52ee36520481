"""A merged model of whole weights: with tied embeddings it stays tied, and is the model that was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from fedllm.adapter.merge import export_merged
from tests.fedllm.adapter.test_lora_export import IDS, lora_run, output, run_outputs
from tests.support.tiny_models import ENCODERS


@pytest.mark.parametrize(
    ("architecture", "adapter"),
    [
        ("llama", {"form": "last-layers"}),
        ("llama", {"form": "full"}),
        ("gpt2", {"form": "full"}),
        ("gpt2", {"form": "last-layers", "layers": [-2, -1]}),
        ("bert", {"form": "full"}),
        ("albert", {"form": "last-layers"}),
    ],
)
def test_the_merged_model_computes_what_the_run_does(
    tmp_path: Path,
    model_folder: Callable[[str], Path],
    architecture: str,
    adapter: dict[str, Any],
) -> None:
    folder = model_folder(architecture)
    run, tunable, params = lora_run(tmp_path, folder, **adapter)
    merged = export_merged(run, tmp_path / "out")
    assert merged.rounding < 1e-3
    auto = AutoModel if architecture in ENCODERS else AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "out").eval()
    base = auto.from_pretrained(folder).eval()
    with torch.no_grad():
        found = output(model(IDS, attention_mask=torch.ones_like(IDS)))
        untouched = output(base(IDS, attention_mask=torch.ones_like(IDS)))
    ours = run_outputs(tunable, params)
    assert float((found - ours).abs().max()) < 1e-5 * max(1.0, float(ours.abs().max()))
    assert float((untouched - ours).abs().max()) > 1e-2
    assert {n: v.shape for n, v in model.named_parameters()} == {
        n: v.shape for n, v in base.named_parameters()
    }
