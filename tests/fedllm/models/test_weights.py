"""A checkpoint that does not fit its model is refused; the digest is of the weights in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    LlamaConfig,
)

from fedllm.models.backbone import load_backbone, make_backbone
from fedllm.models.embedded import ModelError
from fedllm.models.weights import is_exact, stored_dtype

FILE = "model.safetensors"
Change = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> Callable[..., Path]:
    """``folder(architecture or model, change of the tensors, dtype)``: a checkpoint."""

    def make(model: Any, change: Change = dict, dtype: torch.dtype = torch.float32) -> Path:
        path = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        model = tiny_model(model, dtype) if isinstance(model, str) else model
        model.save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        tensors = {name: value.contiguous() for name, value in load_file(path / FILE).items()}
        save_file(dict(change(tensors)), path / FILE, {"format": "pt"})
        return path

    return make


def without(part: str) -> Change:
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


def named(prefix: str) -> Change:
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def cut(part: str) -> Change:
    return lambda tensors: {n: v[:-1].clone() if part in n else v for n, v in tensors.items()}


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("bert", named("module."), r"\d+ missing \(.*unexpected \(module\..*remove 'module\.'"),
        ("llama", named("_orig_mod."), r"missing \(.*unexpected \(_orig_mod.*remove '_orig_mod\.'"),
        ("llama", without("layers.1."), r"9 missing \(model\.layers\.1\..*may be missing"),
        ("bert", without("layer.2."), r"16 missing \(encoder\.layer\.2\."),
        ("qwen2", without("q_proj.bias"), r"3 missing \(model\.layers\.0\.self_attn\.q_proj\.bias"),
        ("llama", without("lm_head"), r"1 missing \(lm_head\.weight\), the output head"),
        ("gpt2", without("wte"), r"missing \(lm_head\.weight, transformer\.wte\.weight"),
        ("roberta", without("position_embeddings"), r"1 missing \(embeddings\.position_embeddings"),
        (
            "bert",
            cut("word_embeddings"),
            r"1 of another shape \(.*word_embeddings\.weight 59x32 for 60x32",
        ),
        ("llama", cut("lm_head"), r"1 of another shape \(lm_head\.weight 59x32 for 60x32\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    folder: Any, architecture: str, change: Change, message: str
) -> None:
    path = folder(architecture, change)
    with pytest.raises(ModelError, match=f"model='{re.escape(str(path))}', got .*{message}"):
        load_backbone(str(path), device="cpu")


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_deeper_checkpoint_than_its_configuration_says_is_refused(
    folder: Any, architecture: str
) -> None:
    """Nothing is missing then: the model would be cut without a word."""
    path = folder(architecture)
    text = (
        (path / "config.json")
        .read_text()
        .replace('"num_hidden_layers": 3', '"num_hidden_layers": 2')
    )
    (path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"got (9|16) unexpected \(.*layers?\.2\."):
        load_backbone(str(path), device="cpu")


def test_a_bias_that_the_model_does_not_know_is_refused(folder: Any) -> None:
    def more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}

    with pytest.raises(
        ModelError, match=r"1 unexpected \(model\.layers\.0\.self_attn\.q_proj\.bias"
    ):
        load_backbone(str(folder("llama", more)), device="cpu")


def bert(**more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, pad_token_id=1, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [
        lambda: BertForPreTraining(bert()),  # heads for masked words and the next sentence
        lambda: BertForSequenceClassification(bert(num_labels=5)),
    ],
)
def test_heads_that_are_not_used_are_fine(folder: Any, model: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    net = model()
    loaded = load_backbone(str(folder(net)), device="cpu").model
    kept = {name: value for name, value in net.bert.state_dict().items() if "pooler" not in name}
    found = loaded.state_dict()
    assert found.keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in found.items())


def test_tied_embeddings_need_no_head_and_an_unused_pooler_is_not_missed(folder: Any) -> None:
    small = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**small, num_attention_heads=4, tie_word_embeddings=True)
    path = folder(AutoModelForCausalLM.from_config(config), without("lm_head"))
    model = load_backbone(str(path), device="cpu").model
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    digests = {
        load_backbone(str(folder("bert", change)), device="cpu").weights_digest
        for change in (dict, without("pooler"))
    }
    assert len(digests) == 1


# -- digests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_nodes_of_any_precision_agree_on_the_same_checkpoint(
    folder: Any, stored: torch.dtype
) -> None:
    path = folder("llama", dtype=stored)
    assert stored_dtype([path / FILE]) == stored
    found = {
        kind: load_backbone(str(path), device="cpu", dtype=kind)
        for kind in ("float32", "bfloat16", "float16")
    }
    assert len({backbone.weights_digest for backbone in found.values()}) == 1
    assert len({backbone.dtype for backbone in found.values()}) == 3
    rounded = [kind for kind, backbone in found.items() if backbone.reload is not None]
    assert rounded == [k for k, b in found.items() if not is_exact([path / FILE], b.dtype)]


def test_the_smallest_change_of_one_stored_value_is_another_digest(folder: Any) -> None:
    """Also on a node that rounds it away: bfloat16 has 8 bits, the change is the last of 24."""

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        value = tensors["model.layers.1.mlp.up_proj.weight"].clone()
        value[3, 4] = torch.nextafter(value[3, 4], torch.tensor(9.0))
        return tensors | {"model.layers.1.mlp.up_proj.weight": value}

    first, second = folder("llama"), folder("llama", change)
    for kind in ("float32", "bfloat16"):
        one, two = (load_backbone(str(p), device="cpu", dtype=kind) for p in (first, second))
        assert one.weights_digest != two.weights_digest
    sharded = folder("llama")
    load_backbone(str(sharded)).model.save_pretrained(sharded, max_shard_size="20KB")
    (sharded / FILE).unlink()
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    digests = {load_backbone(str(p), device="cpu").weights_digest for p in (first, sharded)}
    assert len(digests) == 1, "files are no part of it"


def test_the_digest_is_of_the_memory_and_not_of_the_file(folder: Any) -> None:
    backbone = load_backbone(str(folder("gpt2")), device="cpu", dtype="float32")
    other = load_backbone(str(folder("gpt2")), device="cpu", dtype="float32")
    with torch.no_grad():
        other.model.transformer.h[1].mlp.c_fc.weight[0, 0] += 1
    assert backbone.weights_digest != other.weights_digest


def test_files_that_changed_since_a_rounded_model_was_loaded_are_refused(folder: Any) -> None:
    path = folder("llama")
    backbone = load_backbone(str(path), device="cpu", dtype="bfloat16")
    tensors = load_file(path / FILE)
    save_file({n: v * 1.5 for n, v in tensors.items()}, path / FILE, {"format": "pt"})
    with pytest.raises(ModelError, match="the files changed since"):
        _ = backbone.weights_digest


def test_digest_of_names_shapes_and_values(tiny_model: Any, tiny_tokenizer: Any) -> None:
    def digest(**change: Tensor) -> str:
        model = tiny_model("bert", torch.float32)
        backbone = make_backbone(model, tiny_tokenizer(), "encoder", "x")
        for name, value in change.items():
            model.embeddings.register_buffer(name, value)
        return backbone.weights_digest

    flat = torch.zeros(6)
    found = [
        digest(),
        digest(a=flat),
        digest(b=flat),
        digest(a=flat.view(2, 3)),
        digest(a=flat.int()),
    ]
    assert len(set(found)) == 5
    assert digest() == found[0]
