"""Whole weights: the model that they make, what is found to train, and what is refused before training."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, OPTConfig, PreTrainedModel

from fedllm.models.adapters.base import group_of, layer_of
from fedllm.models.adapters.tape import Tape
from fedllm.models.adapters.weights import WeightsAdapter
from fedllm.training.ghost.factors import Factors
from fedllm.training.tunable import initial_params
from simulations.attacks.batch_mates.architectures import tiny_tunable
from tests.support.tiny_models import make_tiny_model

FORMS = ("last-layers", "full")
ARCHITECTURES = ("bert", "roberta", "albert", "llama", "qwen3", "gpt2")
ROWS, TOKENS = 3, 6


def adapter_of(model: PreTrainedModel, form: Any) -> WeightsAdapter:
    model.pooler = None  # as make_backbone does
    return WeightsAdapter.of(model, form, [-1] if form == "last-layers" else "all")


def ids_of(seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(4, 60, (ROWS, TOKENS), generator=rng)


def point_of(adapter: WeightsAdapter, size: float = 0.2) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        n: size * torch.randn(s, generator=rng, dtype=torch.float64)
        for n, s in adapter.shapes().items()
    }


def output(model: Any, ids: Tensor) -> Tensor:
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return found.logits if "logits" in found else found.last_hidden_state


def plain_weights(model: Any, adapter: WeightsAdapter, point: Any) -> dict[str, Tensor]:
    """The model's own parameters with the changes added, by name."""
    own = dict(model.named_parameters())
    return {p.name: (own[p.name] + point[p.tensor]).requires_grad_() for p in adapter.parameters}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_outputs_and_gradients_are_those_of_a_plain_model_with_these_weights(
    architecture: str, form: str
) -> None:
    """Also of ALBERT's layer, which is used many times, and of GPT-2's embeddings, which are its output matrix."""
    model = make_tiny_model(architecture)
    adapter = adapter_of(model, form)
    point, ids = point_of(adapter), ids_of()
    weights = plain_weights(model, adapter, point)

    def plain(ids: Tensor) -> Tensor:
        found = functional_call(
            model,
            weights,
            (),
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            tie_weights=True,
        )
        states = found.logits if "logits" in found else found.last_hidden_state
        return states

    def loss(states: Tensor) -> Tensor:
        return states.square().mean((1, 2))

    before = output(model, ids)
    tape = Tape(adapter.shared, (ROWS, TOKENS))
    leaves = {
        n: v.expand(ROWS, -1).clone().requires_grad_()
        for n, v in point.items()
        if n not in adapter.shared
    }
    with adapter.scope(point | leaves, (ROWS, TOKENS), tape):
        found = output(model, ids)
    assert torch.allclose(found, plain(ids), rtol=1e-4, atol=1e-5)  # x' is float32
    assert not torch.allclose(found, before, atol=1e-3)
    assert torch.equal(output(model, ids), before)
    grads = torch.autograd.grad(
        loss(found).sum(), [tape.anchor, *leaves.values()], allow_unused=True
    )
    rows = dict(zip(leaves, grads[1:], strict=True))
    for row in range(ROWS):
        own = torch.autograd.grad(loss(plain(ids[row : row + 1])).sum(), list(weights.values()))
        for parameter, expected in zip(adapter.parameters, own, strict=True):
            name = parameter.tensor
            if name in adapter.shared:
                factors = Factors.of(tape.uses[name], parameter.shape, ROWS, torch.device("cpu"))
                assert len(tape.uses[name]) >= len(parameter.places)
                got, square = factors.gradients()[row], float(factors.measure()[0][row])
                assert square == pytest.approx(float(expected.square().sum()), rel=1e-5, abs=1e-12)
            else:
                got = rows[name][row]
            assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-6), name


def test_a_layer_of_many_uses_is_recorded_at_each_of_them() -> None:
    model = make_tiny_model("albert")
    adapter = adapter_of(model, "last-layers")
    tape = Tape(adapter.shared, (ROWS, TOKENS))
    with adapter.scope(point_of(adapter), (ROWS, TOKENS), tape):
        output(model, ids_of())
    assert {len(uses) for uses in tape.uses.values()} == {3}


def test_plain_gradients_take_one_leaf_for_all() -> None:
    model = make_tiny_model("gpt2")
    adapter = adapter_of(model, "full")
    point, ids = point_of(adapter), ids_of()
    leaves = {n: v.clone().requires_grad_() for n, v in point.items()}
    with adapter.scope(leaves, (ROWS, TOKENS)):
        found = torch.autograd.grad(output(model, ids).square().sum(), list(leaves.values()))
    weights = plain_weights(model, adapter, point)
    states = functional_call(model, weights, (ids,)).logits
    own = torch.autograd.grad(states.square().sum(), list(weights.values()))
    for got, expected in zip(found, own, strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_what_each_form_trains() -> None:
    """The top layer with the normalisation above it, or all; a tied matrix once."""
    llama, gpt2 = make_tiny_model("llama"), make_tiny_model("gpt2")
    last = adapter_of(llama, "last-layers")
    outside = [p.name for p in last.parameters if p.layer is None]
    assert outside == ["model.norm.weight"]
    assert last.layers == (2,)
    assert {layer_of(name) for name in last.shapes()} == {2, None}
    assert group_of("weights.all.model.norm.weight") == "model.norm"
    assert last.first_layer(3) == 2
    bert = adapter_of(make_tiny_model("bert"), "last-layers")
    assert {p.layer for p in bert.parameters} == {2}
    full = adapter_of(gpt2, "full")
    assert {p.name for p in full.parameters} == {n for n, _ in gpt2.named_parameters()}
    (tied,) = [p for p in full.parameters if len(p.places) > 1]
    assert [place.parameter for place in tied.places] == [
        "transformer.wte.weight",
        "lm_head.weight",
    ]
    assert full.first_layer(3) == 0
    assert set(full.keep([1]).layers) == {1}
    again = WeightsAdapter.of(gpt2, "full", [1])  # as after a choice of layers
    assert again.shapes() == full.keep([1]).shapes() != full.shapes()
    with pytest.raises(ValueError, match="Expected layers among"):
        full.keep([3])
    with pytest.raises(ValueError, match=r"distinct adapter\.layers between -3 and 2"):
        WeightsAdapter.of(llama, "last-layers", [3])
    settings, tunable = tiny_tunable("bert", torch.float32, "classification", "last-layers")
    assert settings.adapter.layers == (-1,)
    assert all(float(v.abs().max()) == 0 for v in initial_params(tunable, settings).values())


def test_a_module_of_an_unknown_kind_is_refused_by_name() -> None:
    """OPT computes positions within its table."""
    shape = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = OPTConfig(**shape, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=64)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"adapter\.form=full, got .*embed_positions\.weight of OPT"
    ):
        WeightsAdapter.of(model, "full")
    # its feed-forward part sees examples and tokens as one dimension
    adapter = WeightsAdapter.of(model, "last-layers", [-1])
    assert "model.decoder.final_layer_norm.weight" in [p.name for p in adapter.parameters]


def test_an_expert_is_refused_by_name() -> None:
    model = make_tiny_model("llama")
    layer: Any = model.get_submodule("model.layers.2")
    layer.mlp.experts = nn.ModuleList([nn.Linear(32, 32)])
    with pytest.raises(ValueError, match=r"got model\.layers\.2\.mlp\.experts\.0\.weight"):
        WeightsAdapter.of(model, "last-layers", [-1])
    assert WeightsAdapter.of(model, "last-layers", [0]).layers == (0,)


def test_a_parameter_that_other_code_reads_is_refused_by_name() -> None:
    """It would not see the change."""
    model = make_tiny_model("llama")
    layer: Any = model.get_submodule("model.layers.2.mlp")

    class Reads(type(layer)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) + x @ self.up_proj.weight.T[:, :32] * 0.1

    layer.__class__ = Reads
    with pytest.raises(
        ValueError, match=r"got model\.layers\.2\.mlp\.up_proj\.weight, which model\.layers\.2\.mlp"
    ):
        WeightsAdapter.of(model, "last-layers", [-1])


def test_a_module_that_does_not_keep_examples_apart_is_refused() -> None:
    model = make_tiny_model("llama")
    layer: Any = model.get_submodule("model.layers.2.mlp")

    class Turns(type(layer)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.transpose(0, 1)).transpose(0, 1)

    layer.__class__ = Turns
    with pytest.raises(ValueError, match="which example a row belongs to is not known"):
        WeightsAdapter.of(model, "last-layers", [-1])


def test_ids_that_say_no_example_are_refused() -> None:
    """Five positions of five examples look like one token each."""
    model = make_tiny_model("bert")
    adapter = adapter_of(model, "full")
    table: Any = model.get_submodule("embeddings.position_embeddings")
    tape = Tape(adapter.shared, (5, 5))
    with (
        adapter.scope(point_of(adapter), (5, 5), tape),
        pytest.raises(ValueError, match="ids of 5"),
    ):
        table(torch.arange(5))


def test_threads_and_copies_do_not_mix() -> None:
    model = make_tiny_model("bert")
    adapter = adapter_of(model, "full")
    ids, point = ids_of(), point_of(adapter)
    before = output(model, ids)
    found: list[Tensor] = []
    with adapter.scope(point):
        within = output(model, ids)
        thread = threading.Thread(target=lambda: found.append(output(model, ids)))
        thread.start()
        thread.join()
        assert torch.equal(output(copy.deepcopy(model), ids), before)
        with adapter.scope({n: torch.zeros_like(v) for n, v in point.items()}):
            assert torch.allclose(output(model, ids), before, atol=1e-12)
        assert torch.equal(output(model, ids), within)
    assert torch.equal(found[0], before)
    assert not torch.allclose(within, before, atol=1e-3)
