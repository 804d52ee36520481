"""A model over several places: the same bits as on one device, with every adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedllm.budget.release_inputs import model_inputs
from fedllm.models.backbone import Backbone, load_backbone
from fedllm.models.footprint.spread import placement_of, spread
from fedllm.models.model_error import ModelError
from fedllm.settings.io import SettingsError, parse_settings
from fedllm.training.gradients import clipped_gradient_sum
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.attacks.batch_mates.architectures import random_records
from tests.support.tiny_tunables import shaken

MAPS: dict[str, dict[str, str | int]] = {
    "encoder": {"embeddings": "cpu", "encoder": "disk", "pooler": "cpu"},
    "decoder": {
        "model.embed_tokens": "disk",
        "model.layers": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    },
}
FORMS = [
    ("encoder", "prefix"),
    ("encoder", "lora"),
    ("encoder", "head"),
    ("decoder", "prefix"),
    ("decoder", "ffa-lora"),
    ("decoder", "bitfit"),
]


def made(backbone: Backbone, kind: str, form: str, **model: Any) -> tuple[Any, Tunable]:
    task: dict[str, Any] = {"labels": ["a", "b"], "max_length": 24}
    if kind == "decoder":
        task |= {"label_words": ["w10", "w11"], "prompt": "{text} w5"}
    tree = {
        "model": {"name": backbone.name, **model},
        "data": {"source": "files", "path": "."},
        "adapter": {"form": form, "rank": 3},
        "prefix": {"length": 4, "init": "random", "init_std": 0.5},
        "task": tree_task(task),
    }
    settings = parse_settings(tree)
    return settings, make_tunable(settings, backbone)


def tree_task(task: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "classification", "text": ["text"], "target": "label"} | task


def sums(settings: Any, tunable: Tunable) -> list[torch.Tensor]:
    tunable, params = tunable.part(shaken(initial_params(tunable, settings), 3, 0.3), 1)
    records = [
        {k: v.replace("w1", "w") if k == "text" else v for k, v in r.items()}
        for r in random_records([3, 6, 4, 9], 1)
    ]
    found = clipped_gradient_sum(
        tunable,
        params,
        tunable.task.features(records),
        clip_norm=0.5,
        scales=dict.fromkeys(params, 1.0),
        max_tokens=256,
    )
    assert found.nonfinite == 0
    return found.sums


@pytest.mark.parametrize(("kind", "form"), FORMS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_in_files_give_the_same_bits(
    kind: str, form: str, checkpointing: bool, encoder_folder: Path, decoder_folder: Path
) -> None:
    folder = str(encoder_folder if kind == "encoder" else decoder_folder)
    plain = load_backbone(folder, device="cpu")
    apart = load_backbone(folder, device="cpu", device_map=MAPS[kind])
    assert any(p.is_meta for p in apart.model.parameters())
    assert (apart.device, apart.dtype) == (torch.device("cpu"), torch.float32)
    expected = sums(*made(plain, kind, form))
    found = sums(*made(apart, kind, form, checkpointing=checkpointing, reuse="memory"))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_digest_and_fingerprint(encoder_folder: Path) -> None:
    plain = load_backbone(str(encoder_folder), device="cpu")
    apart = load_backbone(str(encoder_folder), device="cpu", device_map=MAPS["encoder"])
    assert apart.weights_digest == plain.weights_digest
    assert model_inputs(plain)["device"] == "cpu"
    assert "disk" in model_inputs(apart)["device"]


def test_auto_without_a_gpu_is_the_cpu(encoder_folder: Path) -> None:
    found = load_backbone(str(encoder_folder), device="cpu", device_map="auto")
    assert set(placement_of(found.model).values()) <= {"cpu"}
    assert not any(p.is_meta for p in found.model.parameters())
    with pytest.raises(ValueError, match=r"Expected model\.device_map=none for model\.device=mps"):
        spread(found.model, "auto", torch.device("mps"))


def test_quantised_layers_are_not_offloaded(encoder_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"room for all quantised layers .*got .* disk"):
        load_backbone(
            str(encoder_folder), device="cpu", quantization="8bit", device_map=MAPS["encoder"]
        )
    found = load_backbone(str(encoder_folder), device="cpu", quantization="8bit", device_map="auto")
    plain = load_backbone(str(encoder_folder), device="cpu", quantization="8bit")
    expected, tree = sums(*made(plain, "encoder", "lora")), made(found, "encoder", "lora")
    assert all(torch.equal(a, b) for a, b in zip(sums(*tree), expected, strict=True))


def test_whole_weights_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"Expected model\.device_map=none for adapter\.form"):
        parse_settings({"model": {"device_map": "auto"}, "adapter": {"form": "last-layers"}})
