"""LoRA as a PEFT adapter: the same outputs as the run's, for each form and architecture."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from fedllm.adapter.export import export_adapter
from fedllm.adapter.merge import export_merged
from fedllm.adapter.peft import load_adapter
from fedllm.adapter.peft_check import why_peft_differs
from fedllm.adapter.predict import Predictor
from fedllm.adapter.released import Released
from fedllm.training.tunable import Tunable, make_tunable
from tests.support.tiny_models import ENCODERS
from tests.support.tuned_runs import LABELS, TEXTS, tuned_run

ModelFolder = Callable[[str], Path]
LORA = {"rank": 4, "alpha": 6.0}
IDS = torch.tensor([[2, 9, 33, 12, 40, 7, 8], [2, 55, 14, 4, 4, 21, 30]])
FORMS = ("prefix", "lora", "ffa-lora", "rolora", "fedsvd", "bitfit", "head")


def lora_run(tmp_path: Path, model: Path, **adapter: Any) -> Any:
    task = "head" if model.name.rstrip("0") in ENCODERS else "words"
    settings = {"form": "lora", **LORA, **adapter}
    return tuned_run(tmp_path, model, task, spread=0.1, adapter=settings)


def run_outputs(tunable: Tunable, params: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad(), tunable.adapter.scope({n: v[None] for n, v in params.items()}):
        return output(tunable.backbone.model(IDS, attention_mask=torch.ones_like(IDS)))


def output(found: Any) -> torch.Tensor:
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


@pytest.mark.parametrize(
    ("architecture", "adapter"),
    [
        ("llama", {}),
        ("llama", {"form": "ffa-lora", "layers": [0, -1], "targets": ["q_proj", "down_proj"]}),
        ("llama", {"form": "rolora", "targets": ["v_proj"]}),
        ("gpt2", {"form": "fedsvd"}),
        ("gpt2", {"targets": ["c_attn"], "layers": [1], "rank": 2}),
        ("mistral", {"layers": [2]}),
        ("bert", {}),
        ("bert", {"layers": [-1], "targets": ["query", "output.dense"]}),
        ("albert", {}),
    ],
)
def test_peft_computes_what_the_run_does(
    tmp_path: Path, model_folder: ModelFolder, architecture: str, adapter: dict[str, Any]
) -> None:
    from peft import PeftModel

    folder = model_folder(architecture)
    run, tunable, params = lora_run(tmp_path, folder, **adapter)
    exported = export_adapter(run, tmp_path / "out")
    assert (exported.peft, exported.why_not_peft) == (True, "")
    auto = AutoModel if architecture in ENCODERS else AutoModelForCausalLM
    base = auto.from_pretrained(folder).eval()
    with torch.no_grad():
        untouched = output(base(IDS, attention_mask=torch.ones_like(IDS)))
        model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
        theirs = output(model(input_ids=IDS, attention_mask=torch.ones_like(IDS)))
    ours = run_outputs(tunable, params)
    assert float((theirs - ours).abs().max()) < 1e-5 * max(1.0, float(ours.abs().max()))
    assert float((untouched - ours).abs().max()) > 1e-2
    config = model.active_peft_config
    assert config.base_model_name_or_path == str(folder)
    assert config.task_type == ("FEATURE_EXTRACTION" if architecture in ENCODERS else "CAUSAL_LM")
    assert config.fan_in_fan_out == (architecture == "gpt2")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(written) == len(tunable.adapter.shapes())


def test_the_installed_models_stay_as_they_are(tmp_path: Path, model_folder: ModelFolder) -> None:
    """The frozen model of a process serves other runs too: PEFT must not leave its layers in it."""
    run, tunable, params = lora_run(tmp_path, model_folder("llama"))
    before = [(name, id(module)) for name, module in tunable.backbone.model.named_modules()]
    first = run_outputs(tunable, params)
    export_adapter(run, tmp_path / "out")
    from fedllm.training.tunable import shared_tunable

    shared = shared_tunable(run.settings_of(params)).backbone.model
    assert not any("lora" in name for name, _ in shared.named_modules())
    assert why_peft_differs(tunable.backbone, tunable.adapter, params, tmp_path / "out") == ""
    assert [(n, id(m)) for n, m in tunable.backbone.model.named_modules()] == before
    assert torch.equal(run_outputs(tunable, params), first)


def without_scale(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    config["lora_alpha"] = config["r"]


def without_a_layer(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]


def other_names(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("base_model.")] = tensors.pop(name)


def swapped(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    first, second = (
        f"base_model.model.model.layers.0.self_attn.o_proj.lora_{f}.weight" for f in "AB"
    )
    tensors[first], tensors[second] = (
        tensors[second].T.contiguous(),
        tensors[first].T.contiguous(),
    )


@pytest.mark.parametrize("size", [1.0, 1e-3])
@pytest.mark.parametrize("fault", [without_scale, without_a_layer, other_names, swapped])
def test_another_adapter_is_noticed(
    tmp_path: Path, model_folder: ModelFolder, fault: Callable[..., None], size: float
) -> None:
    """However small the adapter's own effect is."""
    run, tunable, params = lora_run(tmp_path, model_folder("llama"))
    params = {name: value * (size if name.endswith(".B") else 1) for name, value in params.items()}
    export_adapter(run, tmp_path / "out")
    folder = tmp_path / "out"
    weights = folder / "adapter_model.safetensors"
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {
        name: value * (size if "lora_B" in name else 1)
        for name, value in load_file(weights).items()
    }
    save_file(tensors, weights)
    assert why_peft_differs(tunable.backbone, tunable.adapter, params, folder) == ""
    fault(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, weights)
    assert "its logits differ" in why_peft_differs(
        tunable.backbone, tunable.adapter, params, folder
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_the_exported_model_answers_as_the_run_does(
    tmp_path: Path, model_folder: ModelFolder, architecture: str, form: str
) -> None:
    if (architecture, form) == ("llama", "head"):
        pytest.skip("a decoder has no head")
    layers = {"layers": [0, 2]} if form not in ("prefix", "head") else {}
    run, tunable, _ = lora_run(tmp_path, model_folder(architecture), form=form, **layers)
    exported = export_adapter(run, tmp_path / "out")
    lora = form in ("lora", "ffa-lora", "rolora", "fedsvd")
    assert exported.peft == (lora or (architecture, form) == ("llama", "prefix"))
    _, meta = load_adapter(tmp_path / "out")
    assert meta["settings"]["adapter"]["form"] == form
    loaded = Predictor(tmp_path / "out").predict(TEXTS)
    from_run = Predictor(run.path, backbone=tunable.backbone).predict(TEXTS)
    for a, b in zip(loaded, from_run, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-6)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("\n- lora\n" in card) == lora
    assert ("\n- prefix-tuning\n" in card) == (form == "prefix")


def test_the_card_says_what_was_trained(tmp_path: Path, model_folder: ModelFolder) -> None:
    adapter = {"form": "ffa-lora", "layers": [0, -1], "targets": ["q_proj", "v_proj"]}
    run, _, _ = lora_run(tmp_path, model_folder("llama"), **adapter)
    export_adapter(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    said = (
        "LoRA (form ffa-lora, the first factor of each fixed) of rank 4 and alpha 6 on the linear maps `q_proj`, "
        "`v_proj` in layers 0, 2"
    )
    assert said in card
    assert "library_name: peft" in card
    assert "vllm serve" in card
    assert "--max-lora-rank 8" in card


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_card_of_an_encoder_has_code_that_classifies(
    tmp_path: Path, model_folder: ModelFolder, pooling: str
) -> None:
    """What stands in the card is run as it stands, and must give the run's classes."""
    run, tunable, _ = tuned_run(
        tmp_path,
        model_folder("bert"),
        "head",
        spread=0.3,
        adapter={"form": "lora"},
        task={"pooling": pooling},
    )
    export_adapter(run, tmp_path / "out")
    expected = Predictor(run, backbone=tunable.backbone).predict(TEXTS)
    names = run_code(tmp_path / "out", "PeftModel", TEXTS)
    assert names["answers"] == [answer["label"] for answer in expected]
    for row, answer in zip(names["probabilities"].tolist(), expected, strict=True):
        assert row == pytest.approx(list(answer["probabilities"].values()), abs=1e-5)
    assert names["labels"] == list(LABELS)


def run_code(folder: Path, which: str, texts: list[str]) -> dict[str, Any]:
    """The names that a card's code with this word in it leaves behind, for these texts."""
    card = (folder / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = next(block for block in blocks if which in block)
    assert "FOLDER" in code
    assert '["a text"]' in code
    code = code.replace("FOLDER", str(folder)).replace('["a text"]', repr(texts))
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_a_copy_elsewhere_is_whole(tmp_path: Path, model_folder: ModelFolder) -> None:
    """Nothing in an export points at the run."""
    run, _, _ = lora_run(tmp_path, model_folder("llama"))
    export_adapter(run, tmp_path / "out")
    before = Predictor(tmp_path / "out").predict(TEXTS[:2])
    shutil.move(tmp_path / "out", tmp_path / "moved")
    shutil.rmtree(run.path)
    assert Predictor(tmp_path / "moved").predict(TEXTS[:2]) == before


@pytest.mark.parametrize("how", ["8bit", "4bit"])
def test_an_adapter_of_a_quantised_model_is_exported_for_the_plain_weights(
    tmp_path: Path, model_folder: ModelFolder, how: str
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = model_folder("llama")
    settings = {"form": "lora", **LORA}
    run, tunable, params = tuned_run(
        tmp_path, folder, "words", spread=0.1, adapter=settings, model={"quantization": how}
    )
    assert tunable.backbone.quantization == how
    plain = make_tunable(Released.find(run).plain)
    assert plain.backbone.quantization == "none"
    expected = run_outputs(plain, params)
    assert not torch.allclose(expected, run_outputs(tunable, params), atol=1e-3)
    assert export_adapter(run, tmp_path / "out").peft
    export_merged(run, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        found = output(merged(IDS, attention_mask=torch.ones_like(IDS)))
    assert torch.allclose(found, expected, atol=1e-4)
    bits = how.removesuffix("bit")
    for place, said in (("out", "PEFT puts it on the plain"), ("merged", "added to its plain")):
        card = (tmp_path / place / "README.md").read_text()
        assert f"layers were in {bits} bits" in card
        assert said in card
    answers = Predictor(tmp_path / "out").predict(TEXTS)
    with_run = Predictor(run, backbone=tunable.backbone).predict(TEXTS)
    assert answers == with_run
