"""Clipped sums of gradients that are known by their factors, next to ordinary autograd, one example at a time."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fedllm.data.batches import Feature
from fedllm.models.adapters.tape import Kind, Use
from fedllm.models.footprint.recompute import install, recomputed
from fedllm.training.batch.contained import Failures
from fedllm.training.batch.fixed_shape import FixedShape
from fedllm.training.batch.independence import measure_difference
from fedllm.training.batch.rehearsal import rehearse
from fedllm.training.ghost import choice
from fedllm.training.ghost import clipped as clipped_module
from fedllm.training.ghost.choice import recorded_bytes, recorded_names
from fedllm.training.ghost.clipped import clipped
from fedllm.training.ghost.factors import Factors
from fedllm.training.ghost.record import Recorded, record
from fedllm.training.gradients import clipped_gradient_sum, gradient_sum, per_example_gradients
from fedllm.training.perturbation import Perturbation
from fedllm.training.tunable import Tunable, initial_params
from privacy.mechanisms.clipping import ClippedSum
from simulations.attacks.batch_mates.architectures import random_records, tiny_tunable
from tests.support.tiny_tunables import alone, shaken

CASES = [
    ("bert", "classification", "last-layers"),
    ("bert", "classification", "full"),
    ("roberta", "classification", "full"),
    ("llama", "generation", "full"),
    ("llama", "classification", "last-layers"),
    ("gpt2", "generation", "full"),  # Conv1D, embeddings that are the output matrix too
    ("gpt2", "classification", "last-layers"),
    ("gpt_neox", "generation", "full"),
]
LENGTHS = [3, 6, 4, 5, 3]


class Shapes(TorchDispatchMode):
    """Notes each operation and the shapes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [a for a in (*args, found) if isinstance(a, Tensor)]
        self.seen.append((str(func), [tuple(t.shape) for t in tensors]))
        return found


@lru_cache(maxsize=8)
def scene(
    architecture: str, task: str, form: str
) -> tuple[Tunable, dict[str, Tensor], tuple[Feature, ...]]:
    """A model, a point, and examples of one bucket."""
    settings, tunable = tiny_tunable(architecture, torch.float32, task, form)
    point = shaken(initial_params(tunable, settings), size=0.1)
    return tunable, point, tuple(tunable.task.features(random_records(LENGTHS, 1)))


@lru_cache(maxsize=8)
def oracle(architecture: str, task: str, form: str) -> tuple[list[dict[str, Tensor]], list[float]]:
    """Gradients by ordinary autograd, one example at a time, in float64, and their norms."""
    tunable, point, features = scene(architecture, task, form)
    found = [alone(tunable, point, feature) for feature in features]
    found = [{name: value.double() for name, value in own.items()} for own in found]
    return found, [norm_of(own) for own in found]


def norm_of(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(v.double().square().sum()) for v in tensors.values()))


def summed(
    tunable: Tunable, point: Mapping[str, Tensor], features: Any, clip: float, **options: Any
) -> ClippedSum:
    scales = dict.fromkeys(point, 1.0)
    return clipped_gradient_sum(
        *(tunable, point, list(features)),
        **{"clip_norm": clip, "scales": scales, "max_tokens": 512, **options},
    )


def close(found: Tensor, expected: Tensor, size: float) -> bool:
    return float((found.double() - expected).abs().max()) <= 3e-5 * size


@pytest.mark.parametrize("case", CASES)
def test_norms_and_sum_are_those_of_one_example_at_a_time(case: tuple[str, str, str]) -> None:
    tunable, point, features = scene(*case)
    grads, norms = oracle(*case)
    assert len(tunable.task.batches(features, 512)[0]) > 1
    clip = sorted(norms)[len(norms) // 2] * 1.001
    found = summed(tunable, point, features, clip)
    assert sorted(found.norms.tolist()) == pytest.approx(sorted(norms), rel=1e-4)
    assert found.clipped == sum(norm > clip for norm in norms)
    assert (found.count, found.nonfinite) == (len(features), 0)
    for name, total in zip(sorted(point), found.sums, strict=True):
        factors = [min(1.0, clip / norm) for norm in norms]
        expected = sum(f * own[name] for f, own in zip(factors, grads, strict=True))
        assert close(total, torch.as_tensor(expected), clip), name
    assert norm_of(dict(zip(point, found.sums, strict=True))) > clip


@pytest.mark.parametrize("case", CASES)
def test_rows_and_plain_sums_are_those_of_one_example_at_a_time(
    case: tuple[str, str, str],
) -> None:
    tunable, point, features = scene(*case)
    grads, norms = oracle(*case)
    chosen = tunable.task.batches(features, 512)[0]
    rows = per_example_gradients(
        tunable, point, tunable.task.collate([features[i] for i in chosen])
    )
    for name in point:
        for place, i in enumerate(chosen):
            assert close(rows[name][place], grads[i][name], norms[i]), name
    plain = gradient_sum(tunable, point, features, max_tokens=512)
    for name, total in zip(sorted(point), plain, strict=True):
        expected = torch.stack([own[name] for own in grads]).sum(0)
        assert close(total, expected, sum(norms)), name
    silent = {n for n in point if all(float(own[n].abs().max()) < 1e-12 for own in grads)}
    assert not {n for n in silent if not n.endswith("bias")}, silent


# -- hostile examples ------------------------------------------------------------------------------


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Multiplies the loss of the first example: its gradients are as large as one likes, or NaN."""

    def change(tunable: Tunable, first: Feature, factor: float) -> None:
        usual = type(tunable.task).losses

        def losses(self: Any, params: Any, batch: Any) -> Tensor:
            found = usual(self, params, batch)
            ids = torch.tensor(first.input_ids)
            rows = [
                torch.equal(ids, row[mask.bool()])
                for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
            ]
            factors = torch.where(torch.tensor(rows), torch.tensor(factor), torch.tensor(1.0))
            return found * factors.to(found)

        monkeypatch.setattr(type(tunable.task), "losses", losses)

    return change


HOSTILE = [1e-30, 1e-3, 1e3, 1e20, 3e36, float("inf"), float("nan")]


@pytest.mark.parametrize("factor", HOSTILE)
@pytest.mark.parametrize("case", [CASES[1], CASES[5]])
def test_a_hostile_example_moves_the_sum_by_at_most_the_clipping_norm(
    case: tuple[str, str, str], factor: float, scaled: Any
) -> None:
    tunable, point, features = scene(*case)
    clip = 0.5
    without = summed(tunable, point, features[1:], clip)
    scaled(tunable, features[0], factor)
    alone_sum = summed(tunable, point, features[:1], clip)
    among = summed(tunable, point, features, clip)
    assert norm_of(dict(zip(point, alone_sum.sums, strict=True))) <= clip
    assert all(bool(total.isfinite().all()) for total in among.sums)
    moved = {
        n: a.double() - b.double()
        for n, a, b in zip(sorted(point), among.sums, without.sums, strict=True)
    }
    rounding = 1e-6 * norm_of(dict(zip(point, without.sums, strict=True)))
    assert norm_of(moved) <= clip + rounding
    finite = math.isfinite(factor)
    assert among.nonfinite == int(not finite)
    if not finite:
        assert norm_of(moved) <= rounding
        assert math.inf in among.norms.tolist()


@given(clip=st.floats(1e-6, 1e6), factor=st.sampled_from(HOSTILE))
@hypothesis_settings(max_examples=25, deadline=None)
def test_no_example_adds_more_than_the_clipping_norm(clip: float, factor: float) -> None:
    tunable, point, features = scene("bert", "classification", "last-layers")
    with pytest.MonkeyPatch.context() as patch:
        usual = type(tunable.task).losses
        patch.setattr(type(tunable.task), "losses", lambda *given: usual(*given) * factor)
        for feature in features[:2]:
            found = summed(tunable, point, [feature], clip)
            assert norm_of(dict(zip(point, found.sums, strict=True))) <= clip
            assert (found.norms <= clip).tolist() == [not (found.clipped or found.nonfinite)]


def exact_norm(factors: Factors) -> Fraction:
    """Square of the norm of the first example's gradient, in rational numbers."""
    p, q = factors.shape
    entries = [[Fraction(0)] * q for _ in range(p)]
    if factors.left is not None and factors.right is not None:
        for left, right in zip(factors.left[0].tolist(), factors.right[0].tolist(), strict=True):
            for i, j in itertools.product(range(p), range(q)):
                entries[i][j] += Fraction(left[i]) * Fraction(right[j])
    if factors.ids is not None and factors.rows is not None:
        for i, row in zip(factors.ids[0].tolist(), factors.rows[0].tolist(), strict=True):
            for j in range(q):
                entries[i][j] += Fraction(row[j])
    return sum((e * e for row in entries for e in row), Fraction(0))


SIZES = st.sampled_from([0.0, 1e-38, 1e-20, 1e-3, 1.0, -1.0, 1.0000001, 7.0, 1e10, -1e25, 3e38])


@given(data=st.data(), clip=st.sampled_from([1e-10, 1e-3, 1.0, 1e20]))
@hypothesis_settings(max_examples=150, deadline=None)
def test_norms_are_never_below_the_true_ones_whatever_the_factors(
    data: st.DataObject, clip: float
) -> None:
    """Terms that cancel, overflow, or underflow; a matrix that is used as a map and as a table."""
    p, q = data.draw(st.sampled_from([(2, 3), (9, 9)]))
    uses = []
    for _ in range(data.draw(st.integers(1, 2))):
        kind = data.draw(st.sampled_from(Kind))
        tokens = data.draw(st.integers(1, 3))

        def drawn(size: int, tokens: int = tokens) -> Tensor:
            rows = [data.draw(st.lists(SIZES, min_size=2, max_size=2)) for _ in range(tokens)]
            return torch.tensor([[(row * size)[:size] for row in rows]], dtype=torch.float32)

        if kind is Kind.LOOKUP:
            ids = data.draw(st.lists(st.integers(0, p - 1), min_size=tokens, max_size=tokens))
            uses.append(Use(kind, torch.tensor([ids]), drawn(q)))
        else:
            inputs, outputs = (q, p) if kind is Kind.LINEAR else (p, q)
            uses.append(Use(kind, drawn(inputs), drawn(outputs)))
    factors = Factors.of(uses, (p, q), 1, torch.device("cpu"))
    (square,), (size,) = factors.measure()
    true = exact_norm(factors)
    assert Fraction(float(square)) >= true * (1 - Fraction(1, 2**40))
    found = clipped(Recorded({}, {"w": factors}), 1, 1, clip, {"w": 1.0})
    added = found.sums[0].double()
    assert bool(added.isfinite().all())
    assert float(added.norm()) <= clip * (1 + 2**-22)
    cancels = float(size) > 10 * math.sqrt(true)
    if float(square) < 1e30 and true > Fraction(1e-30) and not cancels:
        length = min(1.0, clip / math.sqrt(float(square)))
        assert float(added.norm()) == pytest.approx(length * math.sqrt(float(true)), rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (60, 70)])
def test_rounding_of_terms_that_cancel_stays_within_the_clipping_norm(
    shape: tuple[int, int],
) -> None:
    """Two tokens' products differ in the last place, and the same way in all entries: what is left is rounding."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        left = torch.randn(1, 1, 1, generator=rng).expand(1, 1, shape[0])
        right, other = (torch.rand(1, 1, 1, generator=rng) + 0.5 for _ in range(2))
        right = right.expand(1, 1, shape[1])
        use = Use(
            *(
                Kind.LINEAR,
                torch.cat([right, right * other], 1),
                torch.cat([left, -left / other], 1),
            )
        )
        factors = Factors.of([use], shape, 1, torch.device("cpu"))
        true = math.sqrt(float(factors.measure()[0]))
        for clip in (true / 2, true * 2):
            found = clipped(Recorded({}, {"w": factors}), 1, 1, clip, {"w": 1.0})
            assert float(found.sums[0].double().norm()) <= clip


def test_a_row_that_is_not_finite_is_selected_out_of_both_factors() -> None:
    """NaN in one factor and infinity in the other would both survive a weight of zero."""
    left, right = torch.ones(3, 2, 4), torch.ones(3, 2, 5)
    left[1, 0, 0], right[2, 1, 1] = float("nan"), float("inf")
    factors = Factors.of([Use(Kind.LINEAR, right, left)], (4, 5), 3, torch.device("cpu"))
    assert factors.finite().tolist() == [True, False, False]
    found = clipped(Recorded({}, {"w": factors}), 3, 3, 1.0, {"w": 1.0})
    alone_sum = clipped(
        Recorded(
            {},
            {
                "w": Factors.of(
                    [Use(Kind.LINEAR, right[:1], left[:1])], (4, 5), 1, torch.device("cpu")
                )
            },
        ),
        *(1, 1, 1.0, {"w": 1.0}),
    )
    assert torch.equal(found.sums[0], alone_sum.sums[0])
    assert found.nonfinite == 2


@pytest.mark.parametrize("shape", [(2, 3), (40, 50)])
def test_terms_between_two_uses_of_a_matrix_are_in_the_norm(shape: tuple[int, int]) -> None:
    """By the product (small matrices) and by Gram matrices (large ones)."""
    rng = torch.Generator().manual_seed(0)
    p, q = shape
    ids, rows = torch.tensor([[0, 1, 1]]), torch.randn(1, 3, q, generator=rng)
    left, right = torch.randn(1, 4, p, generator=rng), torch.randn(1, 4, q, generator=rng)
    uses = [
        Use(Kind.LOOKUP, ids, rows),
        Use(Kind.LINEAR, right, left),
        Use(Kind.LINEAR, right.flip(1), left),
        Use(Kind.LOOKUP, ids.flip(1), rows),
    ]
    factors = Factors.of(uses, shape, 1, torch.device("cpu"))
    assert factors.by_tokens == (shape == (40, 50))
    dense = left[0].double().T @ (right.double() + right.flip(1).double())[0]
    dense.index_add_(0, ids[0], rows[0].double()).index_add_(0, ids[0].flip(0), rows[0].double())
    assert float(factors.measure()[0]) == pytest.approx(float(dense.square().sum()), rel=1e-9)
    assert torch.allclose(factors.gradients()[0].double(), dense, atol=1e-5)
    weights, kept = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.bool)
    assert torch.allclose(factors.weighted_sum(weights, kept).double(), dense, atol=1e-5)


# -- batch mates, fillers, failures, other ways ----------------------------------------------------


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[5]])
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), mine=st.integers(1, 40))
@hypothesis_settings(max_examples=10, deadline=None)
def test_an_example_adds_the_same_whatever_its_batch_mates(
    case: tuple[str, str, str], lengths: list[int], mine: int
) -> None:
    """Rows and norms are the same bits."""
    tunable, point, _ = scene(*case)
    features = tunable.task.features(random_records([mine, *lengths], 3))

    def own(features: list[Feature]) -> tuple[dict[str, Tensor], Tensor]:
        group = next(g for g in tunable.task.batches(features, 512) if 0 in g)
        batch = tunable.task.collate([features[i] for i in group])
        found = record(tunable, point, batch, tunable.adapter.shared)
        place = group.index(0)
        norms = clipped(found, len(group), len(group), 1.0, dict.fromkeys(point, 1.0)).norms
        return {n: v[place] for n, v in found.gradients().items()}, norms[place]

    first, second = own(features[:1]), own(features)
    assert all(torch.equal(first[0][name], second[0][name]) for name in point)
    assert torch.equal(first[1], second[1])


def test_a_model_is_measured_before_it_is_trained() -> None:
    tunable, point, _ = scene("bert", "classification", "last-layers")
    assert measure_difference(tunable, point) == 0
    rehearse(tunable, point, gradients=True)


@pytest.mark.parametrize("max_tokens", [20, 512])
def test_an_example_that_raises_adds_zero(max_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tunable, point, features = scene("bert", "classification", "full")
    expected = summed(tunable, point, features[:3], 0.5, max_tokens=max_tokens)
    poison = Feature([10**6] * len(features[0].input_ids), target=0)
    failures = Failures()
    chosen = [features[0], poison, *features[1:3]]
    found = summed(tunable, point, chosen, 0.5, max_tokens=max_tokens, failures=failures)
    assert failures.count == 1
    assert (found.count, len(found.norms), found.nonfinite) == (4, 4, 0)
    assert 0.0 in found.norms.tolist()
    for one, other in zip(found.sums, expected.sums, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    with pytest.raises(IndexError):
        summed(tunable, point, chosen, 0.5, max_tokens=max_tokens)


def test_no_example_at_all_gives_zeros() -> None:
    tunable, point, _ = scene("bert", "classification", "full")
    found = summed(tunable, point, [], 0.5)
    assert [v.shape for v in found.sums] == [point[n].shape for n in sorted(point)]
    assert norm_of(dict(zip(point, found.sums, strict=True))) == 0
    assert (found.count, len(found.norms)) == (0, 0)


@pytest.mark.parametrize("case", [CASES[1], CASES[5]])
def test_steps_of_a_fixed_shape_are_the_same_operations_and_fillers_add_nothing(
    case: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The padding of token lists and the silo's own norms are left out."""
    tunable, point, features = scene(*case)
    fixed = FixedShape.of(tunable, 6, 256)
    seen: list[list[Any]] = []
    sums = []

    def watched(function: Any) -> Any:
        def call(*args: Any) -> Any:
            with Shapes() as mode:
                found = function(*args)
            seen[-1] += [s for s in mode.seen if s[0] != "aten.slice.Tensor"]
            return found

        return call

    for name in ("record", "clipped"):
        monkeypatch.setattr(clipped_module, name, watched(getattr(clipped_module, name)))
    for chosen in (features[:1], features, ()):
        batch = [*chosen, *[fixed.filler] * (fixed.slots - len(chosen))]
        seen.append([])
        found = summed(
            fixed.tunable, point, batch, 0.5, max_tokens=fixed.max_tokens, examples=len(chosen)
        )
        sums.append(found)
        assert (found.count, len(found.norms)) == (len(chosen), len(chosen))
    assert len(seen[0]) > 100
    assert seen[0] == seen[1] == seen[2]
    expected = summed(tunable, point, features, 0.5)
    for one, other in zip(sums[1].sums, expected.sums, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert norm_of(dict(zip(point, sums[2].sums, strict=True))) == 0


def test_scales_are_within_the_norm() -> None:
    tunable, point, features = scene("gpt2", "generation", "full")
    scales = {name: 3.0 if name.endswith("wte.weight") else 0.5 for name in point}
    grads, _ = oracle("gpt2", "generation", "full")
    norms = [norm_of({n: v * scales[n] for n, v in own.items()}) for own in grads]
    clip = min(norms) / 2
    found = summed(tunable, point, features, clip, scales=scales)
    for name, total in zip(sorted(point), found.sums, strict=True):
        parts = [own[name] * scales[name] * clip / n for own, n in zip(grads, norms, strict=True)]
        assert close(total, torch.stack(parts).sum(0), 10 * clip), name


@pytest.mark.parametrize("form", ["lora", "ffa-lora", "rolora"])
@pytest.mark.parametrize(
    ("architecture", "task"), [("bert", "classification"), ("gpt2", "generation")]
)
def test_lora_is_the_same_by_copies_and_by_factors(
    architecture: str, task: str, form: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    settings, whole = tiny_tunable(architecture, torch.float32, task, form)
    tunable, point = whole.part(shaken(initial_params(whole, settings)), 1)
    features = tunable.task.features(random_records(LENGTHS, 1))
    assert recorded_names(tunable, point, 512) == frozenset()
    by_copies = summed(tunable, point, features, 0.5)
    monkeypatch.setattr(choice, "COPIES", 1000)
    with caplog.at_level(logging.INFO, "fedllm"):
        names = recorded_names(tunable, point, 512)
    assert names == {name for name in point if name.startswith("lora.")}
    by_factors = summed(tunable, point, features, 0.5)
    assert by_factors.clipped == by_copies.clipped > 0
    assert by_factors.norms.tolist() == pytest.approx(by_copies.norms.tolist(), rel=1e-4)
    for one, other in zip(by_factors.sums, by_copies.sums, strict=True):
        assert close(one, other.double(), 30.0)


def test_the_log_says_why_factors_are_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    settings, tunable = tiny_tunable("bert", torch.float32, "classification", "lora")
    monkeypatch.setattr(choice, "COPIES", 1001)
    with caplog.at_level(logging.INFO, "fedllm"):
        for _ in range(2):
            recorded_names(tunable, initial_params(tunable, settings), 512)
    (told,) = [r.message for r in caplog.records if "copies of lora" in r.message]
    assert "GiB" in told


def test_layers_that_are_computed_again_are_no_further_uses() -> None:
    settings, tunable = tiny_tunable("bert", torch.float32, "classification", "full")
    point = shaken(initial_params(tunable, settings), size=0.1)
    features = tunable.task.features(random_records(LENGTHS, 1))
    expected = summed(tunable, point, features, 0.5)
    install(tunable.backbone.model)
    with recomputed(tunable.backbone.model):
        found = summed(tunable, point, features, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(found.sums, expected.sums, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_formats(dtype: torch.dtype) -> None:
    settings, tunable = tiny_tunable("llama", dtype, "generation", "full")
    point = shaken(initial_params(tunable, settings), size=0.1)
    features = tunable.task.features(random_records(LENGTHS, 1))
    found = summed(tunable, point, features, 0.5)
    norms = [norm_of(alone(tunable, point, feature)) for feature in features]
    rel = 0.05 if dtype is torch.bfloat16 else 1e-4
    assert sorted(found.norms.tolist()) == pytest.approx(sorted(norms), rel=rel)
    assert norm_of(dict(zip(point, found.sums, strict=True))) <= 0.5 * len(features)


def flops_of_addmm_(total: Tensor, a: Tensor, b: Tensor, **_: Any) -> int:
    """The counter knows the product that adds in place by no number of its own."""
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


flops_of_addmm_._get_raw = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["last-layers", "full"])
def test_no_copy_of_a_matrix_is_made_for_an_example(form: str) -> None:
    """And the arithmetic is at most half as much again as that of plain gradients."""
    settings, tunable = tiny_tunable("bert-wide", torch.float32, "classification", form)
    point = initial_params(tunable, settings)
    features = tunable.task.features(random_records([6] * 12, 1))
    counted = []
    for compute in (
        lambda: gradient_sum(tunable, point, features, max_tokens=512),
        lambda: summed(tunable, point, features, 0.5),
    ):
        more = {torch.ops.aten.addmm_: flops_of_addmm_}
        with FlopCounterMode(display=False, custom_mapping=more) as count, Shapes() as mode:
            compute()
        counted.append(count.get_total_flops())
        largest = max(math.prod(shape) for _, shapes in mode.seen for shape in shapes)
        assert largest < 2 * 384 * 384
    assert 1 < counted[1] / counted[0] < 1.5


def test_what_needs_a_copy_an_example_is_refused() -> None:
    tunable, point, features = scene("bert", "classification", "last-layers")
    batch = tunable.task.collate(features[:2])
    with pytest.raises(ValueError, match=r"Expected awp\.form=none or batch for whole weights"):
        per_example_gradients(tunable, point, batch, Perturbation(0.1))
    with pytest.raises(ValueError, match=r"awp\.form=per-example for whole weights"):
        summed(tunable, point, features, 0.5, perturbation=Perturbation(0.1))
    copies = {n: torch.stack([v, v + 1]) for n, v in point.items()}
    with pytest.raises(ValueError, match=r"Expected one weights\.01\..* got 2 copies"):
        tunable.losses(copies, batch)


def test_bytes_of_an_example() -> None:
    _, tunable = tiny_tunable("bert", torch.float32, "classification", "last-layers")
    settings, _ = tiny_tunable("bert", torch.float32, "classification", "last-layers")
    point = initial_params(tunable, settings)
    per_token = 4 * (16 + 16) + (16 + 24) + (24 + 16)
    assert recorded_bytes(tunable, point, 10) == 4 * 10 * per_token
