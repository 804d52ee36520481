"""LoRA for llama.cpp: its names and its order of rows, and the outputs of its own server where that is installed."""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from fedllm.adapter.export import export_adapter
from fedllm.adapter.lora_gguf import FAMILIES, gguf_tensors, neighbouring_pairs, save_gguf_lora
from fedllm.adapter.peft import AdapterError
from fedllm.models.adapters.lora import LoraAdapter
from fedllm.models.adapters.plain import HeadAlone
from fedllm.models.adapters.targets import find_targets
from fedllm.models.backbone import Backbone, make_backbone
from tests.fedllm.adapter.test_lora_export import lora_run
from tests.support.tiny_gguf import save_gguf

IDS = [5, 9, 33, 12, 40, 7, 8]


def decoder(tiny_model: Any, tiny_tokenizer: Any, architecture: str) -> Backbone:
    model = tiny_model(architecture, torch.float32)
    return make_backbone(model, tiny_tokenizer(), "decoder", architecture)


def random_lora(
    backbone: Backbone, targets: Any = "all-linear"
) -> tuple[LoraAdapter, dict[str, Tensor]]:
    found = find_targets(backbone.model, targets, "all")
    adapter = LoraAdapter(backbone.model, tuple(found), 4, 6.0)
    rng = torch.Generator().manual_seed(0)
    return adapter, {
        name: 0.3 * torch.randn(shape, generator=rng) for name, shape in adapter.shapes().items()
    }


def log_probabilities(
    backbone: Backbone, adapter: LoraAdapter, params: dict[str, Tensor]
) -> Tensor:
    with torch.no_grad(), adapter.scope({name: v[None] for name, v in params.items()}):
        return backbone.model(torch.tensor([IDS])).logits[0, -1].log_softmax(-1)


def test_the_file_has_llama_cpps_names(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    backbone = decoder(tiny_model, tiny_tokenizer, "llama")
    adapter, params = random_lora(backbone, ["q_proj", "v_proj", "down_proj"])
    reader = gguf.GGUFReader(save_gguf_lora(tmp_path, adapter, params, backbone))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 6.0
    read = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    maps = ("attn_q", "attn_v", "ffn_down")
    assert read.keys() == {
        f"blk.{layer}.{name}.weight.lora_{f}" for layer in range(3) for name in maps for f in "ab"
    }
    module = "lora.02.model.layers.2.mlp.down_proj"
    assert np.array_equal(read["blk.2.ffn_down.weight.lora_a"], params[f"{module}.A"].numpy())
    assert np.array_equal(read["blk.2.ffn_down.weight.lora_b"], params[f"{module}.B"].numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.gguf"]


def test_rows_in_pairs_give_the_same_attention_scores() -> None:
    """Neighbouring pairs rotated (llama.cpp) after the reordering, two halves rotated (transformers) before it."""
    heads, size, inputs = 3, 8, 10
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5, inputs, generator=rng, dtype=torch.float64)
    query, key = (
        torch.randn(heads * size, inputs, generator=rng, dtype=torch.float64) for _ in range(2)
    )
    angles = torch.arange(5)[:, None] * 0.3 ** torch.arange(size // 2)[None, :]

    def rotated(values: Tensor, pairs: bool) -> Tensor:
        split = values.view(5, heads, size)
        if pairs:
            first, second = split[..., 0::2], split[..., 1::2]
        else:
            first, second = split[..., : size // 2], split[..., size // 2 :]
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def scores(q: Tensor, k: Tensor, pairs: bool) -> Tensor:
        return torch.einsum("thd,shd->hts", rotated(x @ q.T, pairs), rotated(x @ k.T, pairs))

    halves = scores(query, key, pairs=False)
    reordered = (neighbouring_pairs(query, heads), neighbouring_pairs(key, heads))
    assert torch.allclose(scores(*reordered, pairs=True), halves)
    assert not torch.allclose(scores(query, key, pairs=True), halves)


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_only_llamas_queries_and_keys_are_reordered(
    tiny_model: Any, tiny_tokenizer: Any, architecture: str
) -> None:
    backbone = decoder(tiny_model, tiny_tokenizer, architecture)
    adapter, params = random_lora(backbone)
    _, tensors = gguf_tensors(adapter, params, backbone)
    heads = {"attn_q": 4, "attn_k": 2}
    assert len(tensors) == len(params)
    for target in adapter.targets:
        name = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
        part = name.get(
            target.module.split(".")[-1], target.module.split(".")[-1].replace("_proj", "")
        )
        part = part if part.startswith("attn") else f"ffn_{part}"
        own = params[f"lora.{target.layer:02d}.{target.module}.B"]
        if part in heads and architecture in ("llama", "mistral"):
            own = neighbouring_pairs(own, heads[part])
        assert torch.equal(tensors[f"blk.{target.layer}.{part}.weight.lora_b"], own)


def test_what_llama_cpp_has_no_name_for_is_refused(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, model_folder: Callable[[str], Path]
) -> None:
    backbone = decoder(tiny_model, tiny_tokenizer, "gpt2")
    with pytest.raises(AdapterError, match=r"of the kinds llama, mistral.*got model\.name='gpt2'"):
        save_gguf_lora(tmp_path, *random_lora(backbone), backbone)
    with pytest.raises(AdapterError, match=r"knows no other form.*adapter\.form=head"):
        save_gguf_lora(tmp_path, HeadAlone(), {}, backbone)
    assert list(tmp_path.iterdir()) == []
    run, _, _ = lora_run(tmp_path, model_folder("bert"))
    with pytest.raises(AdapterError, match="bert, encoder"):
        export_adapter(run, tmp_path / "out", gguf=True)
    assert not (tmp_path / "out").exists()


def test_an_export_has_it_next_to_the_peft_adapter(
    tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    run, _, _ = lora_run(tmp_path, model_folder("llama"), form="ffa-lora")
    export_adapter(run, tmp_path / "out", gguf=True)
    assert {"adapter.gguf", "adapter_model.safetensors"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert "--lora adapter.gguf" in (tmp_path / "out" / "README.md").read_text()
    export_adapter(run, tmp_path / "out")  # without: the earlier one does not stay
    assert not (tmp_path / "out" / "adapter.gguf").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None,
    reason="llama.cpp's server: pip install xllamacpp",
)
@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_llama_cpps_server_gives_the_same_probabilities(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, architecture: str
) -> None:
    from simulations.completion_server import completion_server

    backbone = decoder(tiny_model, tiny_tokenizer, architecture)
    save_gguf(tmp_path / "base.gguf", backbone.model)
    adapter, params = random_lora(backbone)
    file = save_gguf_lora(tmp_path, adapter, params, backbone)
    base = backbone.model(torch.tensor([IDS])).logits[0, -1].log_softmax(-1)
    expected = log_probabilities(backbone, adapter, params)
    body = json.dumps({"prompt": IDS, "n_predict": 1, "n_probs": 20, "temperature": 0}).encode()
    with completion_server(model=tmp_path / "base.gguf", lora=file) as url:
        request = urllib.request.Request(
            url.removesuffix("/v1") + "/completion", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)["completion_probabilities"][0]["top_logprobs"]
    assert len(found) == 20
    for token in found:  # its cache of keys and values is in float16
        assert token["logprob"] == pytest.approx(float(expected[token["id"]]), abs=0.02)
    assert max(abs(token["logprob"] - float(base[token["id"]])) for token in found) > 0.5
