"""Gradient checkpointing: the same bits, in whatever scope and thread the layers are computed again, and less kept."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.profiler import profile
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AlbertConfig, AutoModel

from fedllm.models.adapters.tape import Tape
from fedllm.models.attention import install, padding_scope, prefix_scope
from fedllm.models.footprint import recompute
from fedllm.models.trunk import skip
from fedllm.settings.io import SettingsError, parse_settings
from fedllm.tasks.base import expand_params
from fedllm.training.gradients import clipped_gradient_sum, per_example_gradients
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.attacks.batch_mates.architectures import (
    random_records,
    tiny_backbone,
    tiny_tunable,
)
from tests.support.tiny_models import make_tiny_model
from tests.support.tiny_tunables import shaken

LAST = {
    "bert": "encoder.layer.1.output.dense.weight",
    "gpt2": "transformer.h.1.mlp.c_proj.weight",
}
CASES = [
    ("bert", "classification", "prefix"),
    ("bert", "classification", "lora"),
    ("bert", "classification", "head"),
    ("roberta", "classification", "bitfit"),
    ("llama", "classification", "ffa-lora"),
    ("llama", "generation", "prefix"),
    ("gpt2", "generation", "rolora"),
    ("gpt_neox", "classification", "fedsvd"),
]


def made(architecture: str, task: str, form: str, dtype: Any = torch.float32, **model: Any) -> Any:
    settings, _ = tiny_tunable(architecture, torch.float32, task)
    plain = settings.model_dump(mode="json")
    plain["adapter"] |= {"form": form}
    plain["model"] |= {"checkpointing": True} | model
    settings = parse_settings(plain)
    return settings, make_tunable(settings, tiny_backbone(architecture, dtype))


def plainly(tunable: Tunable) -> Tunable:
    """The same model, all of whose states are kept."""
    task = copy.copy(tunable.task)
    task.checkpointing = False
    return tunable.with_task(task)


def some(tunable: Tunable, settings: Any, lengths: list[int]) -> tuple[dict[str, Tensor], Any]:
    params = shaken(initial_params(tunable, settings), 3, 0.3)
    return params, tunable.task.collate(tunable.task.features(random_records(lengths, 1)))


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize(("architecture", "task", "form"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reuse", ["off", "memory"])
def test_gradients_are_the_same_bits(
    architecture: str, task: str, form: str, dtype: Any, reuse: str
) -> None:
    where = "prefix" if form == "prefix" else "adapter"
    settings, _ = tiny_tunable(architecture, torch.float32, task)
    plain = settings.model_dump(mode="json")
    plain["adapter"] |= {"form": form}
    plain["model"] |= {"checkpointing": True, "reuse": reuse}
    if reuse != "off":
        plain[where]["layers"] = [1]
    settings = parse_settings(plain)
    tunable = make_tunable(settings, tiny_backbone(architecture, dtype))
    assert (tunable.task.trunk is not None) == (reuse != "off")
    params, batch = some(tunable, settings, [3, 6, 4, 5])
    tunable, params = tunable.part(params, 2)
    expected = per_example_gradients(plainly(tunable).without_reuse(), params, batch)
    for _ in range(2):  # the second time the states of the trunk are there
        assert same(per_example_gradients(tunable, params, batch), expected)
    losses = tunable.losses(expand_params(params, len(batch)), batch)
    assert torch.equal(losses, plainly(tunable).losses(expand_params(params, len(batch)), batch))


def leaves_and_losses(tunable: Tunable, params: dict[str, Tensor], batch: Any) -> Any:
    leaves = {
        n: v.expand(len(batch), *v.shape).contiguous().requires_grad_() for n, v in params.items()
    }
    return leaves, tunable.losses(leaves, batch)


@pytest.mark.parametrize("form", ["prefix", "lora"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_layer_is_computed_again_with_what_was_active_the_first_time(
    form: str, elsewhere: bool
) -> None:
    """The backward pass runs while another batch's scopes are open, or in a thread where none is."""
    settings, tunable = made("bert", "classification", form)
    params, batch = some(tunable, settings, [3, 6, 4])
    others, mates = some(tunable, settings, [9, 9])
    others = {name: value + 1 for name, value in others.items()}
    leaves, losses = leaves_and_losses(plainly(tunable), params, batch)
    expected = torch.autograd.grad(losses.sum(), list(leaves.values()))
    leaves, losses = leaves_and_losses(tunable, params, batch)
    found: list[Any] = []

    def backward() -> None:
        with (
            tunable.adapted(expand_params(others, len(mates)), mates),
            padding_scope(tunable.backbone.model, mates.attention_mask),
        ):
            found.extend(torch.autograd.grad(losses.sum(), list(leaves.values())))

    if elsewhere:
        thread = threading.Thread(target=backward)
        thread.start()
        thread.join()
    else:
        backward()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def kept_bytes(tunable: Tunable, params: dict[str, Tensor], batch: Any) -> int:
    """Bytes that torch allocates in a forward pass and has not given back after it."""
    leaves_and_losses(tunable, params, batch)
    with profile(profile_memory=True) as seen:
        held = leaves_and_losses(tunable, params, batch)
    del held
    return sum(event.self_cpu_memory_usage for event in seen.function_events)


def test_layers_keep_what_enters_them_alone() -> None:
    settings, tunable = made("llama", "classification", "lora")
    params, batch = some(tunable, settings, [30] * 8)
    first = kept_bytes(plainly(tunable), params, batch)
    second = kept_bytes(tunable, params, batch)
    assert second < 0.4 * first


def test_each_layer_is_computed_twice_and_only_with_gradients() -> None:
    settings, tunable = made("bert", "classification", "lora")
    params, batch = some(tunable, settings, [3, 4])
    calls: list[int] = []
    tunable.backbone.model.encoder.layer[1].output.dense.register_forward_hook(
        lambda *args: calls.append(1)
    )
    per_example_gradients(tunable, params, batch)
    assert len(calls) == 2
    with torch.no_grad():
        tunable.losses(expand_params(params, len(batch)), batch)
    assert len(calls) == 3
    per_example_gradients(plainly(tunable), params, batch)
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("architecture", "form"), [("bert", "last-layers"), ("bert", "full"), ("gpt2", "full")]
)
def test_factors_of_whole_weights_are_the_same_and_recorded_once(
    architecture: str, form: str
) -> None:
    settings, tunable = made(architecture, "classification", form)
    params, batch = some(tunable, settings, [3, 6, 4])
    scales, found = dict.fromkeys(params, 1.0), []
    features = tunable.task.features(random_records([3, 6, 4], 1))
    for model in (tunable, plainly(tunable)):
        total = clipped_gradient_sum(
            model, params, features, clip_norm=0.1, scales=scales, max_tokens=512
        )
        assert total.clipped >= 1
        found.append(total.sums)
        tape = Tape(model.adapter.shared, tuple(batch.input_ids.shape))  # type: ignore[arg-type]
        small = {n: v for n, v in params.items() if n not in model.adapter.shared}
        losses = model.losses(params | expand_params(small, len(batch)), batch, tape)
        first = {name: len(uses) for name, uses in tape.uses.items()}
        torch.autograd.grad(losses.sum(), tape.anchor, allow_unused=True)
        assert {name: len(uses) for name, uses in tape.uses.items()} == first
        assert all(
            use.gradient is not None for use in tape.uses["weights.01." + LAST[architecture]]
        )
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_second_derivatives_are_the_same() -> None:
    """What sharpness is computed from."""
    settings, tunable = made("bert", "classification", "prefix")
    params, batch = some(tunable, settings, [3, 5])
    found = []
    for model in (tunable, plainly(tunable)):
        with sdpa_kernel(SDPBackend.MATH):  # the only one with second derivatives
            leaves, losses = leaves_and_losses(model, params, batch)
            values = list(leaves.values())
            first = torch.autograd.grad(losses.sum(), values, create_graph=True)
            size = torch.stack([g.square().sum() for g in first]).sum()
            found.append(torch.autograd.grad(size, values))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_one_module_that_serves_several_layers() -> None:
    """ALBERT counts its calls: the second computation counts from where the first began."""
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=40,
        embedding_size=8,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    model = AutoModel.from_config(config).eval().requires_grad_(False)
    install(model, causal=False)
    recompute.install(model)
    prefix = torch.randn(2, 3, 2, 2, 4, 8, requires_grad=True)
    ids = torch.arange(12).view(2, 6)
    found = []
    for again in (False, True):
        with prefix_scope(model, prefix, [0, 1, 2]):
            if again:
                with recompute.recomputed(model):
                    out = model(input_ids=ids).last_hidden_state
            else:
                out = model(input_ids=ids).last_hidden_state
        found.append(torch.autograd.grad(out.square().sum(), prefix)[0])
    assert torch.equal(*found)


def test_it_lies_within_what_leaves_layers_out_whatever_was_installed_first() -> None:
    model = make_tiny_model("bert")
    skip.install(model)
    recompute.install(model)
    recompute.install(model)
    call: Any = model.encoder.layer[0].forward
    assert type(call).__module__ == skip.__name__
    assert type(call.forward).__module__ == recompute.__name__
    assert not isinstance(call.forward.forward, type(call.forward))
    twin = copy.deepcopy(model)
    assert twin.encoder.layer[0].forward.forward.slot is not call.forward.slot


def test_it_is_refused_where_no_gradient_is_taken() -> None:
    with pytest.raises(SettingsError, match=r"Expected model\.checkpointing=false"):
        parse_settings({"model": {"access": "black-box", "checkpointing": True}})
