"""Prefix shapes, initial values, and generation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fedllm.data.batches import Feature, collate
from fedllm.models.attention import prefix_scope
from fedllm.models.backbone import make_backbone
from fedllm.models.prefix import PrefixSpec, init_from_phrase, init_random
from tests.support.generation import generate_with_prefix


@pytest.fixture
def backbone(tiny_model, tiny_tokenizer):
    def make(architecture, bos=False, dtype=torch.float64):
        kind = "encoder" if architecture in ("bert", "roberta") else "decoder"
        return make_backbone(
            tiny_model(architecture, dtype), tiny_tokenizer(bos), kind, architecture
        )

    return make


def test_spec(backbone):
    llama = backbone("llama")
    spec = PrefixSpec.for_backbone(llama, 4)
    assert spec == PrefixSpec(4, (0, 1, 2), 2, 8)
    assert spec.shape == (3, 2, 2, 4, 8)
    assert spec.n_parameters == 3 * 2 * 2 * 4 * 8
    assert PrefixSpec.for_backbone(llama, 4, [2, 0]).layers == (0, 2)
    assert PrefixSpec(4, (), 2, 8).n_parameters == 0
    with pytest.raises(ValueError, match=r"layers between 0 and 2 for llama, got layers=\[3\]"):
        PrefixSpec.for_backbone(llama, 4, [3])
    with pytest.raises(ValueError, match="length < 128"):
        PrefixSpec.for_backbone(llama, 128)
    with pytest.raises(ValueError, match="length >= 1, got length=0"):
        PrefixSpec(0, (0,), 2, 8)
    with pytest.raises(ValueError, match=r"distinct ascending layers >= 0, got layers=\(1, 0\)"):
        PrefixSpec(1, (1, 0), 2, 8)


def test_init_random():
    spec = PrefixSpec(50, tuple(range(4)), 4, 32)
    first = init_random(spec, 0.3, np.random.default_rng(1))
    assert first.shape == spec.shape
    assert first.dtype == torch.float32
    assert abs(float(first.std()) - 0.3) < 0.01
    assert torch.equal(first, init_random(spec, 0.3, np.random.default_rng(1)))
    assert not torch.equal(first, init_random(spec, 0.3, np.random.default_rng(2)))
    with pytest.raises(ValueError, match="std >= 0, got std=-1"):
        init_random(spec, -1, np.random.default_rng(1))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("bos", [False, True])
def test_phrase_for_a_decoder_is_what_its_cache_holds(backbone, architecture, bos):
    """A text after the phrase's prefix has the logits it has after the phrase itself."""
    model = backbone(architecture, bos)
    spec = PrefixSpec.for_backbone(model, 5)
    prefix = init_from_phrase(model, spec, "w7 w8 w9")
    ids = [2, 7, 8, 9, 7] if bos else [7, 8, 9, 7, 8]
    text = [30, 31, 32]
    full = model.model(torch.tensor([ids + text])).logits[:, 5:]
    batch = collate([Feature(text)], 1, position_offset=5)
    with prefix_scope(model.model, prefix[None].double(), spec.layers):
        ours = model.model(**batch.model_inputs()).logits
    assert (ours - full).abs().max() < 1e-5  # the prefix itself is float32


def test_phrase_for_an_encoder_is_its_own_keys(backbone):
    model = backbone("bert")
    spec = PrefixSpec.for_backbone(model, 3, [1, 2])
    prefix = init_from_phrase(model, spec, "w7 w8 w9")
    assert prefix.shape == spec.shape
    hidden = model.model(torch.tensor([[2, 7, 8, 9, 3]]), output_hidden_states=True).hidden_states
    attention = model.model.encoder.layer[2].attention.self
    for index, projection in enumerate((attention.key, attention.value)):
        expected = projection(hidden[2])[0, 1:4].view(3, 4, 8).transpose(0, 1)
        assert (prefix[1, index] - expected).abs().max() < 1e-6
    longer = init_from_phrase(model, PrefixSpec.for_backbone(model, 7), "w7 w8 w9")
    assert longer.shape[3] == 7
    with pytest.raises(ValueError, match="at least one token, got phrase=''"):
        init_from_phrase(model, spec, "")
    with pytest.raises(ValueError, match="at most 64 positions"):
        init_from_phrase(model, PrefixSpec.for_backbone(model, 63), "w7")


PROMPTS = [[10, 11, 12, 13], [20, 21], [30]]


def _prompts():
    return collate([Feature(p) for p in PROMPTS], 1, "left")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("layers", [None, [1]])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_equals_recomputation(backbone, architecture, layers, use_cache):
    model = backbone(architecture)
    spec = PrefixSpec.for_backbone(model, 4, layers)
    prefix = init_random(spec, 1.0, np.random.default_rng(0)).double()
    batch = _prompts()
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    tokens = generate_with_prefix(
        model, spec, prefix, batch.input_ids, batch.attention_mask, use_cache=use_cache, **options
    )
    for row, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for _ in range(8):
            single = collate([Feature(ids)], 1, position_offset=4)
            with prefix_scope(model.model, prefix[None], spec.layers):
                logits = model.model(**single.model_inputs()).logits[0, -1]
            logits[3] = -torch.inf  # min_new_tokens forbids the end token
            ids.append(int(logits.argmax()))
        assert tokens[row, -8:].tolist() == ids[-8:]
    plain = model.model.generate(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options
    )
    assert not torch.equal(plain, tokens)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"cache_implementation": "static"}])
def test_generation_with_beams_and_static_cache(backbone, options):
    model = backbone("llama")
    spec = PrefixSpec.for_backbone(model, 4)
    prefix = init_random(spec, 1.0, np.random.default_rng(0)).double()
    batch = _prompts()
    common = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    common |= {k: v for k, v in options.items() if k == "num_beams"}
    args = (model, spec, prefix, batch.input_ids, batch.attention_mask)
    tokens = generate_with_prefix(
        *args, **common, **{k: v for k, v in options.items() if k not in common}
    )
    assert torch.equal(tokens, generate_with_prefix(*args, use_cache=False, **common))


def test_static_cache_without_padding(backbone):
    """Its prefill has more keys than queries and no mask: the unused tail must stay unseen."""
    model = backbone("llama")
    spec = PrefixSpec.for_backbone(model, 4)
    prefix = init_random(spec, 1.0, np.random.default_rng(0)).double()
    ids = torch.tensor([[10, 11, 12, 13], [20, 21, 22, 23]])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    args = (model, spec, prefix, ids, torch.ones_like(ids))
    static = generate_with_prefix(*args, cache_implementation="static", **options)
    assert torch.equal(static, generate_with_prefix(*args, use_cache=False, **options))


def test_phrase_is_read_without_the_open_prefix(backbone):
    model = backbone("llama")
    spec = PrefixSpec.for_backbone(model, 5)
    prefix = init_from_phrase(model, spec, "w7 w8 w9")
    with prefix_scope(model.model, prefix[None], spec.layers):
        assert torch.equal(init_from_phrase(model, spec, "w7 w8 w9"), prefix)


def test_generation_errors(backbone, tiny_model):
    encoder = backbone("bert")
    ids = torch.tensor([[5, 6]])
    spec = PrefixSpec.for_backbone(encoder, 2)
    with pytest.raises(ValueError, match="Expected a decoder"):
        generate_with_prefix(encoder, spec, torch.zeros(spec.shape), ids, torch.ones_like(ids))
    decoder = backbone("gpt2")
    assert isinstance(decoder.model, type(AutoModelForCausalLM.from_config(decoder.model.config)))
    spec = PrefixSpec.for_backbone(decoder, 2)
    with pytest.raises(ValueError, match="padding on the left"):
        generate_with_prefix(decoder, spec, torch.zeros(spec.shape), ids, torch.tensor([[1, 0]]))
