"""Quantised backbones: what is stored, and that gradients are those of the unpacked weights, each example's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedllm.budget.release_inputs import machine, model_inputs
from fedllm.models.adapters.targets import find_targets
from fedllm.models.backbone import load_backbone
from fedllm.models.footprint import quantise as quantising
from fedllm.models.footprint.quantise import (
    QuantisedLinear,
    quantise,
    quantised_layers,
    require_own_rows,
)
from fedllm.models.memory import weights_bytes
from fedllm.models.model_error import ModelError
from fedllm.models.precision import allows_onednn
from fedllm.settings.io import SettingsError, parse_settings
from fedllm.training.batch.independence import measure_difference
from fedllm.training.gradients import per_example_gradients
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.attacks.batch_mates.architectures import (
    random_records,
    tiny_backbone,
    tiny_tunable,
)
from tests.support.tiny_models import make_tiny_model
from tests.support.tiny_tunables import shaken

WAYS = ("8bit", "4bit")
CASES = [
    ("bert-wide", "classification", "lora"),
    ("bert-wide", "classification", "prefix"),
    ("roberta", "classification", "bitfit"),
    ("llama", "generation", "ffa-lora"),
    ("gpt2", "classification", "lora"),
]


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("bitsandbytes")


def made(architecture: str, task: str, form: str, how: str, dtype: Any = torch.float32) -> Any:
    """Settings, and the tiny model with quantised layers."""
    settings, _ = tiny_tunable(architecture, torch.float32, task)
    plain = settings.model_dump(mode="json")
    plain["adapter"] |= {"form": form}
    plain["model"] |= {"quantization": how}
    backbone = tiny_backbone(architecture, dtype)
    quantise(backbone.model, how)  # type: ignore[arg-type]
    backbone.quantization = how  # type: ignore[assignment]
    settings = parse_settings(plain)
    return settings, make_tunable(settings, backbone)


def unpacked(tunable: Tunable, settings: Any, architecture: str) -> Tunable:
    """The same model with plain layers of the matrices that the quantised ones stand for."""
    backbone = tiny_backbone(architecture, tunable.backbone.dtype)
    for name, layer in quantised_layers(tunable.backbone.model).items():
        there: Any = backbone.model.get_submodule(name)
        assert not torch.equal(there.weight, layer.weight)
        there.weight.data.copy_(layer.weight)
    return make_tunable(settings, backbone)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("architecture", "task", "form"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_unpacked_weights(
    architecture: str, task: str, form: str, how: str, dtype: Any
) -> None:
    settings, whole = made(architecture, task, form, how, dtype)
    params = shaken(initial_params(whole, settings), 3, 0.1)
    batch = whole.task.collate(whole.task.features(random_records([3, 6, 4, 5], 1)))
    tunable, trained = whole.part(params, 1)
    found = per_example_gradients(tunable, trained, batch)
    plain, _ = unpacked(whole, settings, architecture).part(params, 1)
    expected = per_example_gradients(plain, trained, batch)
    for name, value in found.items():
        assert value.dtype == torch.float32
        if architecture == "gpt2":  # its own layer adds the bias by another kernel
            scale = float(expected[name].abs().max())
            tolerance = 1e-5 if dtype == torch.float32 else 0.05
            assert torch.allclose(value, expected[name], atol=tolerance * scale), name
        else:
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("architecture", ["bert-wide", "llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_example_does_not_depend_on_its_batch_mates(
    architecture: str, how: str, dtype: Any
) -> None:
    settings, tunable = made(architecture, "classification", "lora", how, dtype)
    params = shaken(initial_params(tunable, settings), 3, 0.3)
    assert measure_difference(tunable, initial_params(tunable, settings)) == 0
    features = tunable.task.features(random_records([5, 5, 5, 5, 5], 1))
    alone = per_example_gradients(tunable, params, tunable.task.collate(features[:1]))
    table = tunable.backbone.model.get_input_embeddings().weight.data
    own = set(features[0].input_ids)
    others = [i for f in features[1:] for i in f.input_ids if i not in own]
    table[others] *= 1e4  # a scale that is looked for in the whole batch is another one now
    among = per_example_gradients(tunable, params, tunable.task.collate(features))
    assert all(torch.equal(among[name][:1], value) for name, value in alone.items())


def test_eight_bits_are_the_nearest_of_equidistant_levels() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    layer.weight.data[3] = 0
    layer.weight.data[4, 5] = 100.0
    stored = QuantisedLinear(layer, "8bit")
    off = (stored.weight - layer.weight).abs()
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    assert bool((off <= step * (0.5 + 1e-5)).all())
    assert torch.equal(stored.weight[3], torch.zeros(40))
    assert stored.codes.dtype == torch.int8
    assert int(stored.codes.abs().max()) == 127


def test_four_bits_are_those_of_bitsandbytes() -> None:
    """Its own layer stands for the same matrix, bit by bit."""
    import bitsandbytes as library

    torch.manual_seed(0)
    layer = nn.Linear(48, 40)
    theirs = library.nn.Linear4bit(48, 40, quant_type="nf4", compress_statistics=False)
    theirs.load_state_dict(layer.state_dict())
    theirs = theirs.to("cpu")
    expected = library.functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state)
    stored = QuantisedLinear(layer, "4bit")
    assert torch.equal(stored.weight, expected)
    assert len(expected.flatten()[:64].unique()) <= 16
    assert stored.codes.numel() == 48 * 40 // 2


@pytest.mark.parametrize(("how", "most"), [("8bit", 0.28), ("4bit", 0.16)])
def test_what_is_stored_is_smaller_and_nothing_unpacked_is_kept(how: str, most: float) -> None:
    _, tunable = made("bert-wide", "classification", "head", how)
    layers = quantised_layers(tunable.backbone.model)
    plain = sum(layer.weight.nbytes for layer in layers.values())
    assert sum(v.codes.nbytes + v.scales.nbytes for v in layers.values()) < most * plain
    kept: list[Tensor] = []
    x = torch.randn(3, 384, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda v: (kept.append(v), v)[1], lambda v: v):
        layer = next(v for v in layers.values() if v.size[1] == 384)
        out = layer(x)
    assert not kept
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    assert torch.allclose(grad[0], layer.weight.sum(0), atol=1e-5)


def test_which_layers_are_quantised() -> None:
    for architecture in ("bert", "llama", "gpt2"):
        model = make_tiny_model(architecture, torch.float32)
        before = {t.module for t in find_targets(model, "all-linear", "all")}
        count = quantise(model, "8bit")
        assert {t.module for t in find_targets(model, "all-linear", "all")} == before
        assert len(before) == count
        output = model.get_output_embeddings()
        assert output is None or type(output) is nn.Linear
        assert quantise(model, "none") == 0
        with pytest.raises(ModelError, match="got none that are plain"):
            quantise(model, "8bit")
    with pytest.raises(ValueError, match=r"Expected model\.quantization to be one of"):
        quantise(model, "2bit")  # type: ignore[arg-type]


def test_small_matrices_are_multiplied_without_onednn() -> None:
    cpu = torch.device("cpu")
    for architecture, large in (("bert", False), ("bert-wide", True)):
        model = tiny_backbone(architecture, torch.bfloat16).model
        assert allows_onednn(model, torch.bfloat16, cpu) == large
        quantise(model, "8bit")
        assert allows_onednn(model, torch.bfloat16, cpu) == large
        assert allows_onednn(model, torch.float32, cpu)


@pytest.mark.parametrize("how", WAYS)
def test_the_digest_is_that_of_the_plain_weights_and_the_fingerprint_is_not(
    how: str, encoder_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(encoder_folder, tmp_path / "model")
    place = str(tmp_path / "model")
    plain = load_backbone(place, device="cpu")
    packed = load_backbone(place, device="cpu", quantization=how)  # type: ignore[arg-type]
    assert packed.weights_digest == plain.weights_digest
    assert model_inputs(packed) != model_inputs(plain)
    assert ("bitsandbytes" in machine(packed)) == (how == "4bit")
    other = load_backbone(place, device="cpu", quantization=how)  # type: ignore[arg-type]
    next(iter(quantised_layers(other.model).values())).codes[0] ^= 1
    with pytest.raises(ModelError, match="the files changed since"):
        _ = other.weights_digest
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    whole, less = weights_bytes(files, torch.float32), weights_bytes(files, torch.float32, how)
    assert whole is not None
    assert less is not None
    held = sum(v.nbytes for v in packed.model.state_dict().values())
    assert held <= 1.1 * less < 1.1 * whole


def test_checkpoints_that_are_quantised_already(encoder_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder_folder, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    tree = json.loads(config.read_text())
    tree["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    config.write_text(json.dumps(tree))
    with pytest.raises(ModelError, match="outliers in the whole batch"):
        load_backbone(str(tmp_path / "model"), device="cpu")
    tree["quantization_config"]["llm_int8_threshold"] = 0.0
    config.write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=r"Expected model\.quantization=none"):
        load_backbone(str(tmp_path / "model"), device="cpu", quantization="8bit")
    require_own_rows("x", None)
    require_own_rows("x", {"quant_method": "gptq", "bits": 4})


def test_whole_weights_are_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"Expected model\.quantization=none for adapter\.form=full"
    ):
        parse_settings({"model": {"quantization": "8bit"}, "adapter": {"form": "full"}})


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    quantising._bitsandbytes.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    model = make_tiny_model("bert", torch.float32)
    with pytest.raises(ModelError, match=r"Expected the package bitsandbytes .*pip install bits"):
        quantise(model, "4bit")
    quantising._bitsandbytes.cache_clear()
