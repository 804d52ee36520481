"""Adapters: what they compute, one gradient an example, and which tensors a round trains."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    OPTConfig,
    PreTrainedModel,
)

from fedllm.models.adapters.base import group_of, layer_of
from fedllm.models.adapters.bitfit import BitfitAdapter
from fedllm.models.adapters.lora import (
    LoraAdapter,
    factor_name,
    initial_factors,
    orthonormal_rows,
    refactored,
)
from fedllm.models.adapters.plain import HeadAlone
from fedllm.models.adapters.slot import by_example, changed
from fedllm.models.adapters.targets import find_targets, stack_of
from fedllm.tasks.base import expand_params
from fedllm.training.gradients import per_example_gradients
from fedllm.training.tunable import Tunable, initial_params
from simulations.attacks.batch_mates.architectures import random_records, tiny_tunable
from tests.support.tiny_models import make_tiny_model
from tests.support.tiny_tunables import alone

FORMS = ("lora", "ffa-lora", "rolora", "fedsvd", "bitfit")
MODELS = (
    ("bert", "classification"),
    ("roberta", "classification"),
    ("llama", "classification"),
    ("llama", "generation"),
    ("gpt2", "generation"),
    ("gpt_neox", "classification"),
)


def moved(tunable: Tunable, settings: Any, seed: int = 0) -> dict[str, Tensor]:
    """All tensors at a random point: no factor is zero."""
    rng = torch.Generator().manual_seed(seed)
    start = initial_params(tunable, settings)
    return {n: v + 0.3 * torch.randn(v.shape, generator=rng) for n, v in start.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("architecture", "task"), MODELS)
@pytest.mark.parametrize("server_round", [1, 2])
def test_each_row_is_the_gradient_of_one_example_by_ordinary_autograd(
    architecture: str, task: str, form: str, server_round: int
) -> None:
    settings, whole = tiny_tunable(architecture, torch.float32, task, form)
    tunable, params = whole.part(moved(whole, settings), server_round)
    features = tunable.task.features(random_records([3, 6, 4, 5], 1))
    chosen = [features[i] for i in max(tunable.task.batches(features, 512), key=len)]
    assert len(chosen) > 1
    rows = per_example_gradients(tunable, params, tunable.task.collate(chosen))
    assert set(rows) == set(params)
    for place, feature in enumerate(chosen):
        expected = alone(tunable, params, feature)
        for name in params:
            assert torch.allclose(rows[name][place], expected[name], rtol=1e-4, atol=1e-6), name
    largest = {name: float(value.abs().max()) for name, value in rows.items()}
    silent = {name for name, value in largest.items() if value < 1e-12}
    assert not {name for name in silent if not name.endswith("key.bias")}, silent


@pytest.mark.parametrize("form", ["lora", "bitfit"])
def test_a_model_without_an_open_scope_computes_as_before(form: str) -> None:
    settings, tunable = tiny_tunable("bert", torch.float32, "classification", form)
    model = tunable.backbone.model
    ids = torch.arange(4, 12)[None]
    before = model(input_ids=ids).last_hidden_state
    params = moved(tunable, settings)
    with tunable.adapted(expand_params(params, 1)):
        within = model(input_ids=ids).last_hidden_state
        with tunable.adapted(expand_params(initial_params(tunable, settings), 1)):
            inner = model(input_ids=ids).last_hidden_state
    assert not torch.allclose(within, before, atol=1e-3)
    assert torch.allclose(inner, before, atol=1e-6)
    assert torch.equal(model(input_ids=ids).last_hidden_state, before)
    twin = copy.deepcopy(model)
    with tunable.adapted(expand_params(params, 1)):
        assert torch.equal(twin(input_ids=ids).last_hidden_state, before)


def test_lora_is_the_product_of_its_factors() -> None:
    """With W + s B A in the place of W the model gives the same."""
    settings, tunable = tiny_tunable("llama", torch.float32, "generation", "lora")
    params, adapter = moved(tunable, settings), tunable.adapter
    assert isinstance(adapter, LoraAdapter)
    merged = copy.deepcopy(tunable.backbone.model)
    for target in adapter.targets:
        a, b = params[factor_name(target, "A")], params[factor_name(target, "B")]
        merged.get_submodule(target.module).weight.data += adapter.scale * (b @ a)
    ids = torch.arange(4, 14)[None]
    with tunable.adapted(expand_params(params, 1)):
        found = tunable.backbone.model(input_ids=ids).logits
    assert torch.allclose(found, merged(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_bitfit_is_another_bias_and_another_scale() -> None:
    settings, tunable = tiny_tunable("bert", torch.float32, "classification", "bitfit")
    params, adapter = moved(tunable, settings), tunable.adapter
    assert isinstance(adapter, BitfitAdapter)
    merged = copy.deepcopy(tunable.backbone.model)
    for name, value in params.items():
        if name.startswith("bitfit."):
            path, _, part = name.split(".", 2)[2].rpartition(".")
            getattr(
                merged.get_submodule(path), {"bias": "bias", "scale": "weight"}[part]
            ).data += value
    ids = torch.arange(4, 14)[None]
    with tunable.adapted(expand_params(params, 1)):
        found = tunable.backbone.model(input_ids=ids).last_hidden_state
    assert torch.allclose(found, merged(input_ids=ids).last_hidden_state, atol=1e-4)


def test_which_factors_a_round_trains() -> None:
    trained = {}
    for form in FORMS:
        settings, tunable = tiny_tunable("bert", torch.float32, "classification", form)
        params = initial_params(tunable, settings)
        trained[form] = [
            {name.rpartition(".")[2] for name in tunable.part(params, r)[1] if "lora" in name}
            for r in (1, 2, 3, None)
        ]
    assert trained["lora"] == [{"A", "B"}] * 4
    assert trained["ffa-lora"] == trained["fedsvd"] == [{"B"}] * 4
    assert trained["rolora"] == [{"B"}, {"A"}, {"B"}, {"A", "B"}]
    assert trained["bitfit"] == [set()] * 4


def tiny_lora(model: PreTrainedModel, **changes: Any) -> LoraAdapter:
    wanted = {"targets": "all-linear", "layers": "all", "rank": 2, "form": "lora"} | changes
    targets = find_targets(model, wanted["targets"], wanted["layers"])
    return LoraAdapter(model, tuple(targets), wanted["rank"], 4.0, wanted["form"])


def test_targets_are_named_as_in_peft() -> None:
    model = make_tiny_model("llama")
    found = find_targets(model, ["q_proj", "mlp.up_proj"], [-1])
    assert [t.module for t in found] == [
        "model.layers.2.self_attn.q_proj",
        "model.layers.2.mlp.up_proj",
    ]
    assert all(t.layer == 2 for t in found)
    assert len(find_targets(model, "all-linear", "all")) == 3 * 7
    with pytest.raises(ValueError, match=r"adapter\.targets among .*q_proj.*got 'query'"):
        find_targets(model, ["query"], "all")
    with pytest.raises(ValueError, match=r"distinct adapter\.layers between -3 and 2"):
        find_targets(model, "all-linear", [3])
    with pytest.raises(ValueError, match=r"adapter\.rank <= 16 .*got adapter\.rank=17"):
        tiny_lora(model, rank=17, targets=["k_proj"])
    assert [t.inputs for t in find_targets(make_tiny_model("gpt2"), ["c_attn"], [0])] == [32]


def test_names_say_the_layer() -> None:
    assert layer_of("first.lora.04.encoder.layer.4.output.dense.B") == 4
    assert layer_of("bitfit.11.model.layers.11.norm.scale") == 11
    assert layer_of("lora.all.projector.A") is None is layer_of("head.weight")
    assert group_of("lora.all.projector.A") == group_of("lora.all.projector.B") == "projector"
    assert group_of("lora.03.x.A") == "layer 3"
    assert group_of("prefix") is None is group_of("head.bias")


def test_a_layer_that_is_used_many_times_sums_over_its_uses() -> None:
    """ALBERT has one layer for all; OPT flattens examples and tokens before its feed-forward part."""
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
    models = [
        AutoModel.from_config(AlbertConfig(**shape, embedding_size=8, intermediate_size=24)),
        AutoModelForCausalLM.from_config(
            OPTConfig(**shape, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=64)
        ),
    ]
    for model in models:
        model = model.eval().requires_grad_(False).double()
        adapter = tiny_lora(model)
        params = {
            name: torch.randn(size, dtype=torch.float64) * 0.3
            for name, size in adapter.shapes().items()
        }
        ids = torch.randint(4, 60, (3, 6))

        def loss(
            params: dict[str, Tensor], ids: Tensor, model: Any = model, adapter: Any = adapter
        ) -> Tensor:
            with adapter.scope(params, tuple(ids.shape)):
                out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
            states = out.logits if "logits" in out else out.last_hidden_state
            return states.square().mean((1, 2))

        copies = {n: v.expand(3, *v.shape).clone().requires_grad_() for n, v in params.items()}
        rows = torch.autograd.grad(loss(copies, ids).sum(), list(copies.values()))
        for place in range(3):
            one = {n: v[None].clone().requires_grad_() for n, v in params.items()}
            own = torch.autograd.grad(loss(one, ids[place : place + 1]).sum(), list(one.values()))
            for row, expected in zip(rows, own, strict=True):
                assert torch.allclose(row[place], expected[0], rtol=1e-8, atol=1e-10)


def test_tokens_of_an_unknown_example_are_refused() -> None:
    """A module that gathers tokens (an expert) would give one example's gradient to another."""
    assert by_example(torch.zeros(6, 4), (2, 3), "x").shape == (2, 3, 4)
    assert by_example(torch.zeros(2, 4), (2, 3), "x").shape == (2, 1, 4)
    for size in ((5, 4), (1, 6, 4), (3, 2, 4)):
        with pytest.raises(ValueError, match="which example a row belongs to is not known"):
            by_example(torch.zeros(size), (2, 3), "the module x")


def test_experts_are_no_targets() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.mix = nn.Linear(4, 4)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Layer(), Layer()])

        def get_output_embeddings(self) -> None:
            return None

    model: Any = Model()
    assert stack_of(model) == ("layers", 2)
    assert [t.module for t in find_targets(model, "all-linear", "all")] == [
        "layers.0.mix",
        "layers.1.mix",
    ]
    with pytest.raises(ValueError, match=r"outside of experts .*'experts\.0'"):
        find_targets(model, ["experts.0"], "all")


@given(rank=st.integers(1, 6), size=st.integers(6, 40), seed=st.integers(0, 1000))
@hypothesis_settings(max_examples=30, deadline=None)
def test_the_first_factor_starts_with_orthonormal_rows(rank: int, size: int, seed: int) -> None:
    a = orthonormal_rows(rank, size, np.random.default_rng(seed))
    assert a.shape == (rank, size)
    assert torch.allclose(a @ a.T, torch.eye(rank), atol=1e-5)


@given(seed=st.integers(0, 1000), tiny=st.sampled_from([1.0, 1e-6, 1e6]))
@hypothesis_settings(max_examples=30, deadline=None)
def test_refactoring_keeps_the_product_and_makes_the_rows_orthonormal(
    seed: int, tiny: float
) -> None:
    adapter = tiny_lora(make_tiny_model("llama"), form="fedsvd", targets=["q_proj", "down_proj"])
    rng = torch.Generator().manual_seed(seed)
    params = {n: torch.randn(s, generator=rng) for n, s in adapter.shapes().items()}
    params = {n: v * tiny if n.endswith(".B") else v for n, v in params.items()}
    params["head.weight"] = torch.ones(2, 2)
    found = refactored(adapter, params)
    assert found["head.weight"] is params["head.weight"]
    for target in adapter.targets:
        a, b = (factor_name(target, f) for f in ("A", "B"))
        before, after = params[b] @ params[a], found[b] @ found[a]
        assert torch.allclose(after, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
        assert torch.allclose(found[a] @ found[a].T, torch.eye(2), atol=1e-5)
        gram = found[b].T @ found[b]
        assert torch.allclose(gram, gram.diag().diag(), atol=1e-4 * float(gram.max()))


def test_refactoring_leaves_what_was_not_trained() -> None:
    adapter = tiny_lora(make_tiny_model("llama"), form="fedsvd")
    params = initial_factors(adapter, np.random.default_rng(0))
    found = refactored(adapter, params)
    assert all(torch.equal(found[name], params[name]) for name in params)


def test_fewer_layers() -> None:
    _, tunable = tiny_tunable("bert", torch.float32, "classification", "lora")
    kept = tunable.keep([1])
    assert kept.layers == (1,)
    assert {layer_of(name) for name in kept.adapter.shapes()} == {1}
    assert kept.adapter.first_layer(2) == 1
    assert HeadAlone().first_layer(2) == 2
    with pytest.raises(ValueError, match="Expected layers among"):
        tunable.keep([2])


def test_scopes_of_unknown_modules_fail_before_anything_is_computed() -> None:
    with pytest.raises(KeyError), changed(nn.Linear(2, 2), {"absent": lambda m, x, y: y}):
        pass
