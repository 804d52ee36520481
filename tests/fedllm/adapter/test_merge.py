"""A merged model: a plain folder that computes what the adapter does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from fedllm.adapter.export import ExportError, export_adapter
from fedllm.adapter.merge import export_merged, merge
from fedllm.adapter.predict import Predictor
from fedllm.files import durable
from fedllm.models.adapters.bitfit import BitfitAdapter
from tests.fedllm.adapter.test_lora_export import IDS, lora_run, output, run_code, run_outputs
from tests.support.tiny_models import ENCODERS
from tests.support.tuned_runs import TEXTS, tuned_run

ModelFolder = Callable[[str], Path]


@pytest.mark.parametrize(
    ("architecture", "adapter"),
    [
        ("llama", {"form": "lora"}),
        ("llama", {"form": "bitfit"}),
        ("gpt2", {"form": "fedsvd", "layers": [0, 2]}),
        ("gpt2", {"form": "bitfit", "layers": [1]}),
        ("mistral", {"form": "rolora", "targets": ["q_proj", "gate_proj"]}),
        ("bert", {"form": "ffa-lora"}),
        ("bert", {"form": "bitfit"}),
        ("albert", {"form": "lora"}),
        ("albert", {"form": "bitfit"}),
    ],
)
def test_the_merged_model_computes_what_the_adapter_does(
    tmp_path: Path, model_folder: ModelFolder, architecture: str, adapter: dict[str, Any]
) -> None:
    folder = model_folder(architecture)
    run, tunable, params = lora_run(tmp_path, folder, **adapter)
    merged = export_merged(run, tmp_path / "out")
    assert (merged.dtype, merged.round) == ("float32", 1)
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
    # the same tensors as the base model: a module without a bias gets none
    assert {n: v.shape for n, v in model.state_dict().items()} == {
        n: v.shape for n, v in base.state_dict().items()
    }
    ids = AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS)["input_ids"] == ids
    assert not any(
        "lora" in path.name or "adapter" in path.name for path in (tmp_path / "out").iterdir()
    )


def test_an_encoders_head_is_next_to_the_model(tmp_path: Path, model_folder: ModelFolder) -> None:
    run, tunable, params = lora_run(tmp_path, model_folder("bert"))
    export_merged(run, tmp_path / "out")
    head = load_file(tmp_path / "out" / "head.safetensors")
    assert {n: v.tolist() for n, v in head.items()} == {
        n: params[n].tolist() for n in ("head.weight", "head.bias")
    }
    expected = Predictor(run, backbone=tunable.backbone).predict(TEXTS)
    names = run_code(tmp_path / "out", "AutoModel", TEXTS)
    for row, answer in zip(names["probabilities"].tolist(), expected, strict=True):
        assert row == pytest.approx(list(answer["probabilities"].values()), abs=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "with the trained change merged into it" in card
    assert "> **Guaranteed: epsilon = " in card


@pytest.mark.parametrize(("spread", "dtype"), [(0.3, "bfloat16"), (1e-3, "float32")])
def test_a_base_model_in_16_bits_stays_one_where_they_hold_the_change(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, spread: float, dtype: str
) -> None:
    folder = tmp_path / "bert0"
    tiny_model("bert", torch.bfloat16, 0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    lora = {"form": "lora", "layers": [-1], "targets": ["value"]}
    run, _, _ = tuned_run(tmp_path, folder, "head", spread=spread, adapter=lora)
    merged = export_merged(run, tmp_path / "out")
    assert merged.dtype == dtype
    assert (1e-4 if dtype == "bfloat16" else 0) < merged.rounding < 0.1
    weights = load_file(tmp_path / "out" / "model.safetensors").values()
    assert {str(value.dtype) for value in weights} == {f"torch.{dtype}"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- Weights: {dtype}" in card
    assert f"by {merged.rounding:.2g} of what the adapter changes" in card


@pytest.mark.parametrize(
    ("form", "message"),
    [("prefix", r"Predictor and.*PEFT"), ("head", "base model was not changed")],
)
def test_what_is_no_change_of_weights_is_refused(
    tmp_path: Path, model_folder: ModelFolder, form: str, message: str
) -> None:
    run, _, _ = lora_run(tmp_path, model_folder("bert"), form=form)
    with pytest.raises(ExportError, match=message) as error:
        export_merged(run, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_files_of_others_stay(tmp_path: Path, model_folder: ModelFolder) -> None:
    run, _, _ = lora_run(tmp_path, model_folder("bert"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    with pytest.raises(ExportError, match=r"config\.json"):
        export_merged(run, out)
    assert (out / "config.json").read_text() == "mine"
    (out / "config.json").unlink()
    export_merged(run, out)
    first = (out / "model.safetensors").stat().st_ino
    export_merged(run, out)  # an earlier export gives way
    assert (out / "model.safetensors").stat().st_ino != first
    (out / "thesis.txt").write_text("x")
    with pytest.raises(ExportError, match=r"thesis\.txt"):
        export_merged(run, out)
    with pytest.raises(ExportError):
        export_adapter(run, out)
    assert (out / "model.safetensors").exists()


def test_a_fault_leaves_the_earlier_model(
    tmp_path: Path, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong weights, and a full disk."""
    run, _, _ = lora_run(tmp_path, model_folder("llama"))
    export_merged(run, tmp_path / "out")
    names = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    own = type(lora_run(tmp_path / "b", model_folder("llama"))[1].adapter)
    changes = own.weight_changes
    with monkeypatch.context() as patch:
        patch.setattr(
            own, "weight_changes", lambda s, p: {n: 1.1 * v for n, v in changes(s, p).items()}
        )
        with pytest.raises(ExportError, match="its logits differ from the run's"):
            export_merged(run, tmp_path / "out")
    with monkeypatch.context() as patch:

        def full(*args: Any) -> None:
            raise OSError("no space left on device")

        patch.setattr("fedllm.adapter.merge.fsync_folder", full)
        with pytest.raises(OSError, match="no space"):
            export_merged(run, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == names
    assert not list(tmp_path.glob(".out-*"))


def test_a_tied_matrix_is_refused(
    tmp_path: Path, model_folder: ModelFolder, tiny_model: Any
) -> None:
    _, tunable, params = lora_run(tmp_path, model_folder("bert"))
    plain = tiny_model("bert", torch.float32)
    layers = plain.encoder.layer
    layers[1].attention.self.query.weight = layers[0].attention.self.query.weight
    with pytest.raises(ExportError, match="which is tied"):
        merge(plain, tunable.adapter, params)


def test_a_square_map_of_gpt2_is_merged_the_right_way_round(
    tmp_path: Path, model_folder: ModelFolder
) -> None:
    """The shape does not tell: c_attn's transposed change would not fit, c_proj's does."""
    lora = {"form": "lora", "targets": ["attn.c_proj"]}
    run, tunable, params = lora_run(tmp_path, model_folder("gpt2"), **lora)
    changes = tunable.adapter.weight_changes(params)
    assert len(changes) == 3
    x = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, change in changes.items():
        module = f"lora.{name.split('.')[2]:0>2}.{name.removesuffix('.weight')}"
        a, b = params[f"{module}.A"].double(), params[f"{module}.B"].double()
        assert torch.allclose(x @ change, 6.0 / 4 * (x @ a.T) @ b.T)
    export_merged(run, tmp_path / "out")


def test_a_plan_of_bitfit_names_no_missing_bias(tiny_model: Any) -> None:
    adapter = BitfitAdapter.of(tiny_model("llama", torch.float32), "all")
    params = {name: torch.ones(shape) for name, shape in adapter.shapes().items()}
    own = dict(adapter.model.named_parameters())
    assert params
    for name, change in adapter.weight_changes(params).items():
        assert own[name].shape == change.shape


def test_the_marker_names_the_files(tmp_path: Path, model_folder: ModelFolder) -> None:
    run, _, _ = tuned_run(tmp_path, model_folder("llama"), "generation", adapter={"form": "lora"})
    export_merged(run, tmp_path / "out")
    marker = json.loads((tmp_path / "out" / "merged.json").read_text())
    assert sorted(marker["files"]) == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert marker["meta"]["settings"]["adapter"]["form"] == "lora"
    assert durable.plain(marker["meta"]["guarantee"])["sentence"].startswith("Guaranteed")
