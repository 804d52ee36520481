"""Adapters: equality with PEFT in both directions, and the native format."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, PrefixTuningConfig, get_peft_model

from fedllm.adapter.peft import (
    AdapterError,
    load_adapter,
    load_peft_adapter,
    save_adapter,
    save_peft_adapter,
)
from fedllm.data.batches import Feature, collate, position_ids
from fedllm.models.attention import prefix_scope
from fedllm.models.backbone import load_backbone, make_backbone
from fedllm.models.prefix import PrefixSpec, init_random
from tests.support.generation import generate_with_prefix

FEATURES = [Feature([10, 11, 12, 13, 14]), Feature([20, 21]), Feature([30, 31, 32])]
DECODERS = ["llama", "qwen2", "gpt2"]


@pytest.fixture
def pair(tiny_model, tiny_tokenizer):
    """The same float32 model twice: as our backbone, and untouched for PEFT."""

    def make(architecture):
        stock = tiny_model(architecture, torch.float32)
        ours = make_backbone(copy.deepcopy(stock), tiny_tokenizer(), "decoder", architecture)
        return ours, stock

    return make


def _ours(backbone, spec, prefix, batch, counted):
    positions = position_ids(batch.attention_mask, spec.length, counted)
    with torch.no_grad(), prefix_scope(backbone.model, prefix[None], spec.layers):
        return backbone.model(
            batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions
        ).logits


def _difference(ours, theirs, mask):
    return float(((ours - theirs).abs().amax(-1) * mask).max())


def _check_equal(backbone, spec, prefix, peft_model, features=FEATURES):
    """On both sides of padding, with PEFT's default positions and with given ones."""
    for side in ("right", "left"):
        batch = collate(features, backbone.pad_id, side)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        with torch.no_grad():
            default = peft_model(**inputs).logits
            counted = peft_model(
                **inputs, position_ids=position_ids(batch.attention_mask, 0)
            ).logits
            base = peft_model.get_base_model()(**inputs).logits
        mask = batch.attention_mask
        ours = _ours(backbone, spec, prefix, batch, "slots")
        assert _difference(ours, default, mask) < 1e-5
        assert _difference(_ours(backbone, spec, prefix, batch, "tokens"), counted, mask) < 1e-5
        assert _difference(ours, base, mask) > 1e-2


@pytest.mark.parametrize("architecture", DECODERS)
def test_export_gives_the_same_logits(pair, tmp_path, architecture):
    backbone, stock = pair(architecture)
    spec = PrefixSpec.for_backbone(backbone, 6)
    prefix = init_random(spec, 1.0, np.random.default_rng(0))
    save_peft_adapter(tmp_path, prefix, spec, "base", backbone.n_layers)
    _check_equal(backbone, spec, prefix, PeftModel.from_pretrained(stock, tmp_path).eval())
    again, spec_again = load_peft_adapter(tmp_path)
    assert torch.equal(again, prefix)
    assert spec_again == spec


@pytest.mark.parametrize("architecture", DECODERS)
def test_import_gives_the_same_logits(pair, tmp_path, architecture):
    backbone, stock = pair(architecture)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    peft_model = get_peft_model(stock, config).eval()
    trainable = [p for p in peft_model.parameters() if p.requires_grad]
    assert len(trainable) == 1
    with torch.no_grad():
        trainable[0].normal_(generator=torch.Generator().manual_seed(4))
    peft_model.save_pretrained(tmp_path)
    prefix, spec = load_peft_adapter(tmp_path)
    assert spec == PrefixSpec.for_backbone(backbone, 6)
    _check_equal(backbone, spec, prefix, peft_model)


def _same_tokens(backbone, spec, prefix, peft_model, features):
    batch = collate(features, backbone.pad_id, "left")
    options = {"max_new_tokens": 10, "do_sample": False}
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    ours = generate_with_prefix(backbone, spec, prefix, **inputs, **options)
    theirs = peft_model.generate(**inputs, **options, pad_token_id=backbone.pad_id)
    assert torch.equal(ours, theirs)
    assert ours.shape[1] > batch.input_ids.shape[1]


@pytest.mark.parametrize("architecture", DECODERS)
def test_reloaded_export_generates_the_same_tokens(pair, tmp_path, architecture):
    backbone, stock = pair(architecture)
    stock.save_pretrained(tmp_path / "base")
    spec = PrefixSpec.for_backbone(backbone, 6)
    prefix = init_random(spec, 1.0, np.random.default_rng(3))
    save_peft_adapter(tmp_path / "adapter", prefix, spec, str(tmp_path / "base"), 3)
    peft_model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    _same_tokens(backbone, spec, prefix, peft_model, FEATURES)


@pytest.mark.slow
def test_smollm2_export(tmp_path):
    pytest.importorskip("gguf")
    try:
        backbone, plain = load_backbone("smollm2"), load_backbone("smollm2")
    except ValueError as error:
        pytest.skip(str(error))
    plain.model.set_attn_implementation("sdpa")
    spec = PrefixSpec.for_backbone(backbone, 8)
    assert (spec.kv_heads, plain.model.config.num_attention_heads) == (3, 9)
    prefix = init_random(spec, 0.5, np.random.default_rng(0))
    save_peft_adapter(tmp_path, prefix, spec, "smollm2", backbone.n_layers)
    peft_model = PeftModel.from_pretrained(plain.model, tmp_path).eval()
    texts = ["The movie was", "Review: a very long and winding film. Sentiment:"]
    features = [Feature(backbone.tokenizer(t)["input_ids"]) for t in texts]
    _check_equal(backbone, spec, prefix, peft_model, features)
    _same_tokens(backbone, spec, prefix, peft_model, features)


def test_peft_cannot_hold_a_subset(pair, tmp_path):
    backbone, _ = pair("llama")
    spec = PrefixSpec.for_backbone(backbone, 6, [0, 2])
    with pytest.raises(AdapterError, match=r"all 3 layers .* got layers=\[0, 2\]"):
        save_peft_adapter(tmp_path, torch.zeros(spec.shape), spec, "base", 3)
    full = PrefixSpec.for_backbone(backbone, 6)
    with pytest.raises(ValueError, match="prefix of shape"):
        save_peft_adapter(tmp_path, torch.zeros(spec.shape), full, "base", 3)
    assert list(tmp_path.iterdir()) == []


def test_damaged_peft_adapters(tmp_path):
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        load_peft_adapter(tmp_path)
    spec = PrefixSpec(2, (0, 1), 2, 4)
    save_peft_adapter(tmp_path, torch.zeros(spec.shape), spec, "base", 2)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, message in [
        ({"peft_type": "LORA"}, "peft_type=LORA"),
        ({"num_layers": None}, "num_layers"),
        ({"num_layers": 5}, r"shape \(2, 2 \* 5 \* 8\)"),
    ]:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(AdapterError, match=message):
            load_peft_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(AdapterError, match="Expected safetensors"):
        load_peft_adapter(tmp_path)


def test_native_format(tmp_path):
    params = {"prefix": torch.randn(2, 2, 4, 3, 8), "head.bias": torch.randn(2)}
    meta = {"labels": ["a", "b"], "layers": [1, 2]}
    save_adapter(tmp_path / "a", params, meta)
    loaded, loaded_meta = load_adapter(tmp_path / "a")
    assert list(loaded) == ["head.bias", "prefix"]
    assert all(torch.equal(loaded[k], params[k]) for k in params)
    assert loaded_meta == meta
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "adapter.json",
        "adapter.safetensors",
    ]
    save_adapter(tmp_path / "b", {k: v + 1 for k, v in params.items()}, meta)
    (tmp_path / "a" / "adapter.safetensors").write_bytes(
        (tmp_path / "b" / "adapter.safetensors").read_bytes()
    )
    with pytest.raises(AdapterError, match="do not belong together"):
        load_adapter(tmp_path / "a")
    with pytest.raises(AdapterError, match=r"adapter with adapter\.json"):
        load_adapter(tmp_path)
    (tmp_path / "b" / "adapter.json").write_text('{"format": "other"}')
    with pytest.raises(AdapterError, match="got other version None"):
        load_adapter(tmp_path / "b")
    (tmp_path / "b" / "adapter.json").write_text("[")
    with pytest.raises(AdapterError, match="Expected JSON"):
        load_adapter(tmp_path / "b")
