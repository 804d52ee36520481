"""An example's gradient is its own, bit by bit: batch mates are searched adversarially, by architecture."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedllm.data.shapes import Shapes
from fedllm.models.embedded import ModelError
from fedllm.models.precision import allows_onednn, require_full_precision
from fedllm.models.prefix import PREFIX
from fedllm.tasks.base import expand_params
from fedllm.training import tunable as tunables
from fedllm.training.batch.independence import measure_difference, require_independence
from fedllm.training.batch.rehearsal import rehearse
from fedllm.training.black_box.forward_only import LocalForwardOnly
from fedllm.training.gradients import per_example_gradients
from fedllm.training.tunable import Tunable, initial_params
from simulations.attacks.batch_mates import attack as batch_mates
from simulations.attacks.batch_mates import padding as padding_poison
from simulations.attacks.batch_mates import rounding as batch_rounding
from simulations.attacks.batch_mates.architectures import (
    random_records,
    task_records,
    tiny_tunable,
)
from tests.support.tiny_tunables import shaken

CASES = [
    ("bert", torch.float32, "classification"),
    ("bert", torch.bfloat16, "classification"),
    ("bert:lora", torch.float32, "classification"),
    ("bert:ffa-lora", torch.bfloat16, "classification"),
    ("bert-wide:bitfit", torch.float32, "classification"),
    ("llama:lora", torch.float32, "generation"),
    ("gpt2:ffa-lora", torch.float32, "classification"),
    ("bert-wide", torch.float32, "classification"),
    ("bert-wide", torch.bfloat16, "classification"),
    ("roberta", torch.float32, "classification"),
    ("llama", torch.float32, "classification"),
    ("llama", torch.bfloat16, "generation"),
    ("llama-wide", torch.bfloat16, "generation"),
    ("gpt2", torch.float32, "generation"),
    ("gpt_neox", torch.float32, "classification"),
    ("phi3-longrope", torch.float32, "classification"),
    ("llama-dynamic", torch.float32, "generation"),
    ("bert", torch.float32, "multilabel"),
    ("bert:lora", torch.bfloat16, "regression"),
    ("bert", torch.float32, "tokens"),
    ("bert-wide", torch.bfloat16, "tokens"),
    ("llama", torch.float32, "chat"),
    ("llama-wide:lora", torch.bfloat16, "chat"),
]
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=7)


def params_at(tunable: Tunable, settings: Any, size: float, seed: int) -> dict[str, Tensor]:
    return shaken(initial_params(tunable, settings), seed, size)


def gradients(tunable: Tunable, params: dict[str, Tensor], features: list[Any]) -> list[Tensor]:
    """One flat gradient an example, computed in the micro-batches that training makes."""
    rows: list[Tensor] = [torch.empty(0)] * len(features)
    for group in tunable.task.batches(features, 512):
        batch = tunable.task.collate([features[i] for i in group])
        found = per_example_gradients(tunable, params, batch)
        flat = torch.cat([found[name].flatten(1) for name in sorted(found)], dim=1)
        for place, row in zip(group, flat, strict=True):
            rows[place] = row
    return rows


def same(a: Tensor, b: Tensor) -> bool:
    """Return True if all bits are equal."""
    return torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize(("architecture", "dtype", "task"), CASES)
@given(
    lengths=LENGTHS,
    mine=st.integers(1, 40),
    size=st.sampled_from([0.3, 30.0, 3e3, 1e12, float("inf")]),
    seed=st.integers(0, 50),
)
@example(lengths=[1], mine=5, size=30.0, seed=44)  # bert in bfloat16: products underflow
@example(lengths=[1, 1], mine=2, size=30.0, seed=44)
@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_gradient_is_the_same_bits_alone_and_among_others(
    architecture: str,
    dtype: torch.dtype,
    task: str,
    lengths: list[int],
    mine: int,
    size: float,
    seed: int,
) -> None:
    name, _, form = architecture.partition(":")
    settings, tunable = tiny_tunable(name, dtype, task, form or "prefix")
    tunable, params = tunable.part(params_at(tunable, settings, size, seed))
    features = tunable.task.features(task_records(task, [mine, *lengths], seed))
    among = gradients(tunable, params, features)[0]
    alone = gradients(tunable, params, features[:1])[0]
    assert same(alone, among)
    model = LocalForwardOnly(tunable)
    losses = [
        torch.cat([model.losses(params, part) for part in model.batches(chosen, 512)])
        for chosen in (features, features[:1])
    ]
    place = [i for group in tunable.task.batches(features, 512) for i in group].index(0)
    assert same(losses[0][place], losses[1][0])


@pytest.mark.parametrize("architecture", ["bert", "llama-wide", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("unchecked", [False, True])
def test_the_attack_moves_a_sum_by_one_clipping_norm(
    architecture: str, dtype: str, unchecked: bool
) -> None:
    found = batch_mates.attack(architecture, dtype, 12, unchecked=unchecked)
    assert 0.5 < found.clipping_norms < 1.0001
    assert found.answers <= 1


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_attack_finds_a_slot_for_padding(architecture: str) -> None:
    """Without buckets and selection the slot makes every padded example's gradient NaN."""
    settings, tunable = tiny_tunable(architecture)
    params = params_at(tunable, settings, 0.3, 1)
    draw, found = random.Random(3), None
    for _ in range(10):  # a slot is not found for all texts
        features = tunable.task.features(batch_mates.alike_records(draw))
        found = found or padding_poison.poison(tunable, params, features, draw, 3e38)
        if found is not None:
            break
    assert found is not None
    batch = tunable.task.collate(features)
    model = tunable.backbone.model
    with torch.no_grad(), tunable.adapted(expand_params(found, 1)):
        states = model(**batch.model_inputs(), output_hidden_states=True).hidden_states[-1]
    padded = (batch.attention_mask == 0).any(1)
    assert padded.any()
    assert not states[padded].isfinite().all()


def test_the_rounding_that_is_left_is_measured() -> None:
    found = batch_rounding.measure("bert-wide", "float32", 4)
    assert found.compared >= 8
    assert found.differ == found.clipping_norms == 0


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        *((name, "classification") for name in ("bert", "roberta", "llama", "gpt2")),
        *((("bert", "tokens"), ("bert", "multilabel"), ("llama", "chat"))),
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_stands_at_padding_does_not_matter(architecture: str, task: str, bad: float) -> None:
    """The pad token's embedding is not finite: gradients are those of a finite one."""
    settings, tunable = tiny_tunable(architecture, torch.float32, task)
    params = params_at(tunable, settings, 0.3, 1)
    features = tunable.task.features(task_records(task, [3, 9, 20], 2))
    expected = gradients(tunable, params, features)
    table = tunable.backbone.model.get_input_embeddings().weight
    pad = tunable.backbone.tokenizer.pad_token_id
    before = table[pad].clone()
    if architecture in ("llama", "gpt2"):
        head = tunable.backbone.model.get_output_embeddings()
        if (
            head.weight is table
        ):  # tied: the vocabulary's scores are not finite, with or without padding
            head.weight = nn.Parameter(table.clone(), requires_grad=False)
    try:
        table[pad] = bad
        found = gradients(tunable, params, features)
    finally:
        table[pad] = before
    for a, b in zip(found, expected, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        *((name, "classification") for name in ("bert", "llama", "gpt2")),
        *((name, "generation") for name in ("llama", "gpt2")),
        *((("bert", "tokens"), ("bert", "multilabel"), ("gpt2", "chat"))),
    ],
)
def test_fixed_rows_change_nothing_but_rounding(
    architecture: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes of other devices than the CPU: every micro-batch of a bucket has the same number of rows."""
    settings, tunable = tiny_tunable(architecture, torch.float32, task)
    params = params_at(tunable, settings, 0.3, 1)
    lengths = [2, 3, 9, 10] if task == "chat" else [3, 9, 20, 21]
    features = tunable.task.features(task_records(task, lengths, 2))
    free = gradients(tunable, params, features)
    metrics = tunable.evaluate(params, features, 512)
    shapes = Shapes(least=16, parts=1, tokens=128, longest=100)
    monkeypatch.setitem(tunable.task.__dict__, "shapes", shapes)
    batch = tunable.task.collate(features[:2])
    assert (len(batch), batch.input_ids.shape) == (2, (8, 16))
    fixed = gradients(tunable, params, features)
    for a, b in zip(free, fixed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    again = tunable.evaluate(params, features, 512)
    assert again == pytest.approx(metrics, rel=1e-4)
    scores, weights = tunable.scores(expand_params(params, 2), batch)
    assert scores.shape[0] == weights.shape[0] == 2
    assert same(gradients(tunable, params, features[:1])[0], fixed[0])


class Coupled(nn.Module):
    """A layer that scales by the largest value of the whole batch, as batch-wide quantisation does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.inner(hidden)
        return out * (2.0 / out.abs().amax())


def test_a_model_that_couples_examples_is_refused() -> None:
    settings, tunable = tiny_tunable("bert")
    start = initial_params(tunable, settings)
    assert measure_difference(tunable, start) == 0
    assert require_independence(tunable, start).difference == 0
    layer = tunable.backbone.model.encoder.layer[0].intermediate
    dense = layer.dense
    fresh = Tunable(tunable.backbone, tunable.task, tunable.adapter)
    try:
        layer.dense = Coupled(dense)
        with pytest.raises(ModelError, match="model='bert': among others"):
            require_independence(fresh, start)
    finally:
        layer.dense = dense


def test_active_dropout_is_refused() -> None:
    settings, tunable = tiny_tunable("bert")
    fresh = Tunable(tunable.backbone, tunable.task, tunable.adapter)
    fresh.backbone.model.train()
    try:
        with pytest.raises(ModelError, match="dropout"):
            require_independence(fresh, initial_params(tunable, settings))
    finally:
        fresh.backbone.model.eval()


@pytest.mark.parametrize("architecture", ["phi3-longrope"])
def test_a_text_beyond_the_rotary_table_does_not_change_later_ones(architecture: str) -> None:
    settings, tunable = tiny_tunable(architecture)
    params = params_at(tunable, settings, 0.3, 1)
    short, between, long = tunable.task.features(random_records([4, 26, 50], 3))
    before = [gradients(tunable, params, [f])[0] for f in (short, between)]
    gradients(tunable, params, [long])
    after = [gradients(tunable, params, [f])[0] for f in (short, between)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("architecture", ["phi3-longrope", "llama-dynamic"])
def test_a_model_that_writes_to_its_tables_is_rehearsed_and_then_trained(architecture: str) -> None:
    """Tables that were made in inference mode could not be written to afterwards."""
    settings, tunable = tiny_tunable(architecture)
    params = params_at(tunable, settings, 0.3, 1)
    long = tunable.task.features(random_records([50], 3))
    rehearse(tunable, params, gradients=True)
    forward = LocalForwardOnly(tunable)
    for batch in forward.batches(long, 512):
        forward.losses(params, batch)
    assert all(bool(value.isfinite().all()) for value in gradients(tunable, params, long))


def test_full_precision_inside_whatever_was_set_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries turn TF32 on for the whole process."""
    settings, tunable = tiny_tunable("bert")
    params = params_at(tunable, settings, 0.3, 1)
    batch = tunable.task.collate(tunable.task.features(random_records([3], 1)))
    seen: list[str] = []
    losses = tunable.task.losses
    backends: Any = torch.backends

    def watched(*args: Any) -> Tensor:
        seen.extend(
            part.fp32_precision
            for part in (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv)
        )
        assert not backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        assert not backends.cuda.matmul.allow_fp16_reduced_precision_reduction
        return losses(*args)

    monkeypatch.setattr(tunable.task, "losses", watched)
    backends.cuda.matmul.fp32_precision = "tf32"
    backends.mkldnn.matmul.fp32_precision = "bf16"
    backends.cudnn.allow_tf32 = True
    backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    per_example_gradients(tunable, params, batch)
    assert seen[:2] == ["ieee"] * 2
    assert seen[2] in ("ieee", "none")
    assert not backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")  # the older switch
    require_full_precision()
    assert backends.mkldnn.matmul.fp32_precision == backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("architecture", "dtype", "device", "expected"),
    [
        ("bert", torch.bfloat16, "cpu", False),  # 16 x 16
        ("bert", torch.float16, "cpu", False),
        ("bert", torch.float32, "cpu", True),
        ("bert", torch.bfloat16, "cuda", True),
        (
            "bert-wide",
            torch.bfloat16,
            "cpu",
            True,
        ),  # 384 x 24; the table of two segments is not multiplied
        ("llama-wide", torch.bfloat16, "cpu", False),  # 64 x 24
    ],
)
def test_onednn_where_no_product_is_below_its_limit(
    architecture: str, dtype: torch.dtype, device: str, expected: bool
) -> None:
    model = tiny_tunable(architecture)[1].backbone.model
    assert allows_onednn(model, dtype, torch.device(device)) is expected


def test_each_model_is_computed_with_its_own_kernels() -> None:
    """The switch is the process's: it must not stay as the model before left it."""
    for architecture, dtype, expected in (
        ("bert", torch.bfloat16, False),
        ("bert-wide", torch.bfloat16, True),
        ("gpt2", torch.bfloat16, False),
        ("gpt2", torch.float32, True),
    ):
        settings, tunable = tiny_tunable(architecture, dtype)
        batch = tunable.task.collate(tunable.task.features(random_records([3], 1)))
        per_example_gradients(tunable, params_at(tunable, settings, 0.3, 1), batch)
        assert torch.backends.mkldnn.enabled is expected


@pytest.mark.parametrize("scale", [1.0, 1e-37])
def test_a_row_of_a_small_product_has_the_same_bits_among_others(scale: float) -> None:
    """On both sides of torch's limit for oneDNN, at which kernels change."""
    require_full_precision(onednn=False)
    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        rows = (torch.randn(32, 16, generator=rng) * scale).bfloat16()
        matrix = torch.randn(16, 16, generator=rng).bfloat16()
        assert torch.equal((rows @ matrix)[:8], rows[:8] @ matrix)


def test_a_loss_that_is_not_finite_leaves_the_others_alone() -> None:
    """Autograd differentiates the sum of the losses: one NaN must not reach other rows."""
    settings, tunable = tiny_tunable("bert")
    params = params_at(tunable, settings, 0.3, 1)
    features = tunable.task.features(random_records([5, 5, 5], 1))
    batch = tunable.task.collate(features)
    copies = {n: v.clone().contiguous() for n, v in expand_params(params, 3).items()}
    expected = tunables.Tunable.losses(tunable, copies, batch)
    copies[PREFIX][1] = float("nan")
    leaves = {n: v.requires_grad_(True) for n, v in copies.items()}
    losses = tunable.losses(leaves, batch)
    grads = torch.autograd.grad(losses.sum(), list(leaves.values()))
    assert losses[1].isnan()
    assert torch.equal(losses[[0, 2]], expected[[0, 2]])
    for grad in grads:
        assert grad[[0, 2]].isfinite().all()
