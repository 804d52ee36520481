"""Encoders that do not number their attention layers; what is refused, and with the true reason."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from fedllm.data.batches import Feature, collate
from fedllm.models.attention import geometry, install, prefix_scope
from fedllm.models.backbone import load_backbone
from fedllm.models.embedded import ModelError
from fedllm.models.parts.text_model import check_kind
from fedllm.training.batch.independence import require_independence
from fedllm.training.batch.rehearsal import rehearse
from fedllm.training.tunable import initial_params, make_tunable

P = 3
LENGTHS = (6, 2, 5)
B = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 60,
    "max_position_embeddings": 40,
}
KINDS: dict[str, dict[str, Any]] = {
    "distilbert": {
        "dim": 16,
        "hidden_dim": 24,
        "n_layers": 3,
        "n_heads": 4,
        "vocab_size": 60,
        "max_position_embeddings": 40,
    },
    "albert": B | {"embedding_size": 8},
    "esm": B | {"pad_token_id": 1, "mask_token_id": 4},
    "mobilebert": B | {"embedding_size": 8, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "layoutlm": B,
    "nomic_bert": B,
}
"""Encoders that call transformers' attention interface without the number of the layer."""


def model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    made = AutoModel.from_config(AutoConfig.for_model(kind, **KINDS[kind])).double().eval()
    draw = torch.Generator().manual_seed(1)
    for value in made.parameters():
        value.data.add_(torch.randn(value.shape, generator=draw, dtype=value.dtype) * 0.3)
    return made.requires_grad_(False)


def features() -> list[Feature]:
    draw = torch.Generator().manual_seed(1)
    return [Feature(torch.randint(5, 60, (n,), generator=draw).tolist()) for n in LENGTHS]


def prefix(made: PreTrainedModel, batch: int, seed: int = 2) -> Tensor:
    shape = geometry(made)
    draw = torch.Generator().manual_seed(seed)
    size = (batch, shape.n_layers, 2, shape.kv_heads, P, shape.head_dim)
    return torch.randn(size, generator=draw, dtype=torch.float64)


def hidden(made: PreTrainedModel, chosen: list[Feature]) -> Tensor:
    batch = collate(chosen, 1)
    out: Tensor = made(**batch.model_inputs()).last_hidden_state
    return out.masked_fill(batch.attention_mask[..., None] == 0, 0.0)


def with_eager_prefix(kind: str, values: Tensor, chosen: list[Feature]) -> Tensor:
    """The model's own eager attention, with keys and values put in front of the n-th call's: no code of ours."""
    plain = model(kind)
    plain.set_attn_implementation("eager")
    module = importlib.import_module(type(plain).__module__)
    original = module.eager_attention_forward
    calls = []

    def in_front(
        layer: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any
    ) -> Any:
        k, v = values[0, len(calls)]
        calls.append(layer)
        key = torch.cat([k[None].expand(len(key), -1, -1, -1), key], dim=2)
        value = torch.cat([v[None].expand(len(value), -1, -1, -1), value], dim=2)
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (P, 0), value=0.0)
        return original(layer, query, key, value, mask, **more)

    module.eager_attention_forward = in_front
    try:
        found = hidden(plain, chosen)
    finally:
        module.eager_attention_forward = original
    assert len(calls) == 3
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_is_what_the_models_own_attention_makes_of_it(kind: str) -> None:
    made = model(kind)
    before = hidden(made, features())
    install(made, causal=False)
    assert geometry(made) == type(geometry(made))(3, 4, 4, causal=False)
    torch.testing.assert_close(hidden(made, features()), before, atol=1e-9, rtol=0)
    values = prefix(made, 1)
    with prefix_scope(made, values, (0, 1, 2)):
        found = hidden(made, features())
    expected = with_eager_prefix(kind, values, features())
    torch.testing.assert_close(
        found, expected, atol=1e-6, rtol=1e-6
    )  # eager softmax is float32 in some
    assert float((found - before).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_they_train_and_pass_the_check_for_independent_examples(
    kind: str, encoder_folder: Path, tmp_path: Path, tiny_settings: Callable[..., Any]
) -> None:
    """As a run takes them: from a folder, padded by each example's own length."""
    folder = changed(encoder_folder, tmp_path / kind)
    (folder / "model.safetensors").unlink()
    model(kind).float().save_pretrained(folder)
    settings = tiny_settings(**{"model.name": str(folder)})
    tunable = make_tunable(settings, load_backbone(str(folder), device="cpu"))
    params = initial_params(tunable, settings)
    require_independence(tunable, params)
    rehearse(tunable, params, gradients=True)
    assert params["prefix"].shape[0] == 3


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"mobilebert"}))
def test_the_gradient_of_each_example_is_its_own(kind: str) -> None:
    """MobileBERT's tokens read their neighbours, padding's among them: its padding must be the example's own."""
    made = model(kind)
    install(made, causal=False)
    values = prefix(made, 1)
    size = float(hidden(made, features()).abs().max())
    leaf = values.expand(len(LENGTHS), *values.shape[1:]).clone().requires_grad_()
    with prefix_scope(made, leaf, (0, 1, 2)):
        losses = (hidden(made, features()) / size).tanh().sum((1, 2))
        (together,) = torch.autograd.grad(losses.sum(), leaf)
    assert float(together.abs().amax((0, 2, 3, 4, 5)).min()) > 1e-6  # every layer's prefix counts
    for row, feature in enumerate(features()):
        alone = values.clone().requires_grad_()
        with prefix_scope(made, alone, (0, 1, 2)):
            loss = (hidden(made, [feature]) / size).tanh().sum()
            (own,) = torch.autograd.grad(loss, alone)
        torch.testing.assert_close(together[row], own[0], atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_model_that_shares_a_layer_counts_by_itself(
    copied: Callable[[Any], Any],
) -> None:
    made = model("albert")
    install(made, causal=False)
    values = prefix(made, 1)
    other = copied(made)
    with prefix_scope(made, values[:, :1], (1,)):
        found = hidden(made, features())
        assert float((hidden(other, features()) - found).abs().max()) > 1e-3
        with prefix_scope(other, values[:, :1], (1,)):
            torch.testing.assert_close(hidden(other, features()), found)
        with pytest.raises(IndexError):
            made(torch.full((1, 2), 999))  # a pass that breaks off leaves no count behind
        torch.testing.assert_close(hidden(made, features()), found)


def test_layers_are_those_of_the_subset_where_one_module_serves_all() -> None:
    made = model("albert")
    install(made, causal=False)
    values = prefix(made, 1)
    found = []
    for layer in range(3):
        with prefix_scope(made, values[:, layer : layer + 1], (layer,)):
            found.append(hidden(made, features()))
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in itertools.pairwise(found))
    with prefix_scope(made, values[:, [2, 0, 1]], (2, 0, 1)):
        mixed = hidden(made, features())
    with prefix_scope(made, values, (0, 1, 2)):
        torch.testing.assert_close(hidden(made, features()), mixed)


# -- what is refused, and why ----------------------------------------------------------------------


def test_a_model_that_cannot_compute_two_tokens_says_so() -> None:
    config = {k: v for k, v in B.items() if k != "vocab_size"}
    made = AutoModel.from_config(AutoConfig.for_model("canine", **config)).eval()
    with pytest.raises(
        ValueError, match=r"CanineModel to compute a text of two tokens, got Runtime"
    ):
        install(made, causal=False)


def test_attention_of_its_own_is_the_reason_where_it_is() -> None:
    made = AutoModel.from_config(AutoConfig.for_model("mpnet", **B)).eval()
    with pytest.raises(ValueError, match=r"MPNetModel computes its own"):
        install(made, causal=False)


@pytest.mark.parametrize(
    ("kind", "what"), [("qwen2_5_vl", "images"), ("mistral3", "images"), ("clap", "sound")]
)
def test_a_model_of_more_than_text_is_not_taken_for_an_encoder(kind: str, what: str) -> None:
    config = AutoConfig.for_model(kind)
    for asked in ("encoder", "decoder"):
        with pytest.raises(ModelError, match=rf"model of text alone, .*reads {what} too"):
            check_kind("there", config, asked)  # type: ignore[arg-type]


def test_causal_attention_is_no_encoders(decoder_folder: Path) -> None:
    with pytest.raises(ModelError, match="both directions in an encoder, got causal attention"):
        load_backbone(str(decoder_folder), kind="encoder", device="cpu")


def changed(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_one_line(file: str, encoder_folder: Path, tmp_path: Path) -> None:
    folder = changed(encoder_folder, tmp_path / "m")
    (folder / file).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", encoding="ascii"
    )
    with pytest.raises(
        ModelError, match=rf"pointer of Git LFS in the place of {file}.*git lfs pull"
    ):
        load_backbone(str(folder), device="cpu")


@pytest.mark.parametrize("keep", [0, 5, 40, -1, -1000])
def test_weights_that_are_cut_short_are_one_line(
    keep: int, encoder_folder: Path, tmp_path: Path
) -> None:
    folder = changed(encoder_folder, tmp_path / "m")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors of model=.* damaged|cut short"):
        load_backbone(str(folder), device="cpu")


def test_a_missing_shard_and_a_damaged_index_are_one_line(
    encoder_folder: Path, tmp_path: Path
) -> None:
    folder = changed(encoder_folder, tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match=r"2 weight files .* got none named model-00002-of-00002"):
        load_backbone(str(folder), device="cpu")
    index.write_text("{")
    with pytest.raises(ModelError, match=r"damaged model\.safetensors\.index\.json"):
        load_backbone(str(folder), device="cpu")


def test_code_of_a_model_is_never_run(encoder_folder: Path, tmp_path: Path) -> None:
    folder = changed(encoder_folder, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "their-own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match=r"needs Python code of its own .*never run here"):
        load_backbone(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()
