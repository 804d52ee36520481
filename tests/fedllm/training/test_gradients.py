"""Per-example gradients of the tiny models: each its example's own, clipped, summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_tunables import KINDS, alone, make, random_params
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.training.gradients import clipped_gradient_sum, gradient_sum, per_example_gradients
from fedllm.training.tunable import Tunable, make_tunable


@pytest.fixture(scope="module")
def tunables(tiny_settings: Callable[..., Any], decoder_folder: Any) -> dict[str, Tunable]:
    return {kind: make(kind, tiny_settings, decoder_folder) for kind in KINDS}


@pytest.fixture(scope="module")
def features(tunables: dict[str, Tunable], word_records: Any) -> dict[str, list[Feature]]:
    records = word_records(12, 5)
    return {kind: tunable.task.features(records) for kind, tunable in tunables.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_gradient_is_that_of_the_example_alone(
    kind: str, tunables: dict[str, Tunable], features: dict[str, list[Feature]]
) -> None:
    """Padding and batch mates change nothing but rounding (lengths differ within the batch)."""
    tunable, chosen = tunables[kind], features[kind]
    assert len({len(f) for f in chosen}) > 3
    params = random_params(tunable)
    got = per_example_gradients(tunable, params, tunable.task.collate(chosen))
    for row, feature in enumerate(chosen):
        expected = alone(tunable, params, feature)
        for name, value in expected.items():
            assert value.abs().max() > 1e-4, "the test would compare zeros"
            torch.testing.assert_close(got[name][row], value, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_tokens", [1, 20, 10_000])
def test_micro_batches_change_nothing_but_rounding(
    kind: str, max_tokens: int, tunables: dict[str, Tunable], features: dict[str, list[Feature]]
) -> None:
    tunable, chosen = tunables[kind], features[kind]
    params = random_params(tunable)
    scales = dict.fromkeys(params, 1.0)
    got = clipped_gradient_sum(
        tunable, params, chosen, clip_norm=0.1, scales=scales, max_tokens=max_tokens
    )
    expected = [torch.zeros_like(params[name]) for name in sorted(params)]
    for feature in chosen:
        one = alone(tunable, params, feature)
        norm = torch.cat([one[name].flatten() for name in sorted(one)]).norm()
        factor = min(1.0, 0.1 / float(norm))
        expected = [e + factor * one[n] for e, n in zip(expected, sorted(one), strict=True)]
    assert got.count == len(chosen)
    assert got.clipped > 0
    for value, wanted in zip(got.sums, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-5)
    plain = gradient_sum(tunable, params, chosen, max_tokens=max_tokens)
    whole = [sum(alone(tunable, params, f)[name] for f in chosen) for name in sorted(params)]
    for value, wanted in zip(plain, whole, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-5)


def influence(
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    out: int,
    clip: float,
    scales: dict[str, float],
) -> float:
    """Distance of the clipped sums with and without one example."""

    def total(chosen: list[Feature]) -> Tensor:
        result = clipped_gradient_sum(
            tunable, params, chosen, clip_norm=clip, scales=scales, max_tokens=64
        )
        return torch.cat([value.flatten().double() for value in result.sums])

    return float((total(features) - total(features[:out] + features[out + 1 :])).norm())


@given(
    kind=st.sampled_from(KINDS),
    out=st.integers(0, 11),
    clip=st.floats(1e-3, 10),
    prefix_scale=st.floats(0.05, 20),
    spread=st.floats(0.01, 3),
    seed=st.integers(0, 1000),
)
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_one_example_moves_the_sum_by_at_most_the_clipping_norm(
    kind: str,
    out: int,
    clip: float,
    prefix_scale: float,
    spread: float,
    seed: int,
    tunables: dict[str, Tunable],
    features: dict[str, list[Feature]],
) -> None:
    """In the scaled coordinates, to which the noise is added. Rounding of sums: 12 clip 2^-22."""
    tunable = tunables[kind]
    params = {n: v * spread for n, v in random_params(tunable, seed).items()}
    scales = {name: prefix_scale if name == "prefix" else 1.0 for name in params}
    moved = influence(tunable, params, features[kind], out, clip, scales)
    assert moved <= clip * (1 + 12 * 2**-20)


def test_the_bound_is_met_by_a_clipped_example(
    tunables: dict[str, Tunable], features: dict[str, list[Feature]]
) -> None:
    """Otherwise the property above could hold for want of any influence."""
    for kind in KINDS:
        params = random_params(tunables[kind])
        scales = dict.fromkeys(params, 1.0)
        moved = influence(tunables[kind], params, features[kind], 3, 1e-3, scales)
        assert moved == pytest.approx(1e-3, rel=1e-3)


def test_clipping_is_over_all_tensors_jointly(
    tunables: dict[str, Tunable], features: dict[str, list[Feature]]
) -> None:
    tunable = tunables["encoder"]
    params = random_params(tunable)
    one = features["encoder"][:1]
    got = clipped_gradient_sum(
        tunable, params, one, clip_norm=0.01, scales=dict.fromkeys(params, 1.0), max_tokens=64
    )
    norms = [float(value.norm()) for value in got.sums]
    assert len([n for n in norms if n > 1e-4]) >= 2, "several tensors must have a share"
    assert sum(n**2 for n in norms) ** 0.5 == pytest.approx(0.01, rel=1e-4)


def test_a_non_finite_gradient_counts_and_leaves_the_others_alone(
    tiny_settings: Callable[..., Any], features: dict[str, list[Feature]]
) -> None:
    """One word's embedding is infinite: the examples with it have no finite gradient."""
    from fedllm.models.backbone import load_backbone

    settings = tiny_settings()
    tunable = make_tunable(settings, load_backbone(settings.model.name, device="cpu"))
    params = random_params(tunable)
    scales = dict.fromkeys(params, 1.0)
    chosen = features["encoder"]
    word = chosen[4].input_ids[1]
    bad = [f for f in chosen if word in f.input_ids]
    good = [f for f in chosen if word not in f.input_ids]
    assert bad
    assert len(good) > 5
    embeddings = tunable.backbone.model.get_input_embeddings().weight

    def total(some: list[Feature], tokens: int) -> Any:
        return clipped_gradient_sum(
            tunable, params, some, clip_norm=0.5, scales=scales, max_tokens=tokens
        )

    before = total(good, 10_000)
    with torch.no_grad():
        embeddings[word] = float("inf")
    after = total(chosen, 10_000)
    assert (after.count, after.nonfinite) == (len(chosen), len(bad))
    assert before.nonfinite == 0
    for value, wanted in zip(after.sums, before.sums, strict=True):
        assert torch.isfinite(value).all()
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-6)


def test_no_examples_give_zeros_of_the_right_shapes(tunables: dict[str, Tunable]) -> None:
    for tunable in tunables.values():
        params = random_params(tunable)
        got = clipped_gradient_sum(
            tunable, params, [], clip_norm=1, scales=dict.fromkeys(params, 1.0), max_tokens=64
        )
        plain = gradient_sum(tunable, params, [], max_tokens=64)
        assert got.count == 0
        for sums in (got.sums, plain):
            assert [s.shape for s in sums] == [params[n].shape for n in sorted(params)]
            assert all(not s.any() for s in sums)
