"""Adversarial weight perturbation by each example's own gradient: exact, and nobody else's business."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_tunables import KINDS, alone, make, random_params
from torch import Tensor

from fedllm.codec import Layout, make_codec
from fedllm.data.batches import Feature
from fedllm.settings.codec import CodecSettings
from fedllm.training.gradients import clipped_gradient_sum, gradient_sum, per_example_gradients
from fedllm.training.perturbation import Perturbation, is_perturbed, perturbation_of
from fedllm.training.tunable import Tunable

Make = Callable[..., Any]
GAMMA = 0.3
"""Far above what one would train with, so that the perturbed gradient is another one."""
SLOW = hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def tunables(tiny_settings: Make, decoder_folder: Any) -> dict[str, Tunable]:
    return {kind: make(kind, tiny_settings, decoder_folder) for kind in KINDS}


@pytest.fixture(scope="module")
def features(tunables: dict[str, Tunable], word_records: Any) -> dict[str, list[Feature]]:
    records = word_records(12, 5)
    return {kind: tunable.task.features(records) for kind, tunable in tunables.items()}


def slow_perturbed_gradient(
    tunable: Tunable, params: Mapping[str, Tensor], feature: Feature, head: bool
) -> dict[str, Tensor]:
    """The method written down: one example, one layer after the other, in float64."""
    gradient = alone(tunable, params, feature)
    moved = {name: value.clone() for name, value in params.items()}

    def step(w: Tensor, g: Tensor) -> Tensor:
        w, g = w.double(), g.double()
        assert float(g.norm()) > 1e-6, "the test would perturb by nothing"
        return (w + GAMMA * w.norm() * g / g.norm()).float()

    for layer in range(len(params["prefix"])):
        moved["prefix"][layer] = step(params["prefix"][layer], gradient["prefix"][layer])
    if head:
        moved["head.weight"] = step(params["head.weight"], gradient["head.weight"])
    return alone(tunable, moved, feature)


def clipped_loop(
    gradients: Sequence[Mapping[str, Tensor]], clip: float, scales: Mapping[str, float]
) -> list[Tensor]:
    total = [torch.zeros_like(gradients[0][n]) for n in sorted(gradients[0])]
    for one in gradients:
        scaled = [one[n] * scales[n] for n in sorted(one)]
        norm = float(torch.cat([v.flatten() for v in scaled]).norm())
        total = [t + v * min(1.0, clip / norm) for t, v in zip(total, scaled, strict=True)]
    return total


@pytest.mark.parametrize(("kind", "head"), [(k, False) for k in KINDS] + [("encoder", True)])
@pytest.mark.parametrize("max_tokens", [1, 20, 10_000])
def test_clipped_sum_is_that_of_a_slow_loop_over_the_examples(
    kind: str,
    head: bool,
    max_tokens: int,
    tunables: dict[str, Tunable],
    features: dict[str, list[Feature]],
) -> None:
    """And so whatever the micro-batches; clipped at a norm that cuts some of them."""
    tunable, chosen = tunables[kind], features[kind]
    params = random_params(tunable)
    perturbation = Perturbation(GAMMA, head)
    slow = [slow_perturbed_gradient(tunable, params, f, head) for f in chosen]
    rows = per_example_gradients(tunable, params, tunable.task.collate(chosen), perturbation)
    plain = per_example_gradients(tunable, params, tunable.task.collate(chosen))
    for name in params:
        wanted = torch.stack([one[name] for one in slow])
        torch.testing.assert_close(rows[name], wanted, rtol=1e-3, atol=1e-5)
    size = plain["prefix"].norm()
    assert (rows["prefix"] - plain["prefix"]).norm() > 0.05 * size, "the perturbation does nothing"
    norms = torch.cat([rows[n].flatten(1) for n in sorted(rows)], dim=1).norm(dim=1)
    clip = float(norms.median())
    scales = {name: 0.5 if name == "prefix" else 1.0 for name in params}
    got = clipped_gradient_sum(
        tunable,
        params,
        chosen,
        clip_norm=clip,
        scales=scales,
        max_tokens=max_tokens,
        perturbation=perturbation,
    )
    assert got.count == len(chosen)
    for value, wanted in zip(got.sums, clipped_loop(slow, clip, scales), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-5)
    summed = gradient_sum(tunable, params, chosen, max_tokens=max_tokens, perturbation=perturbation)
    for value, name in zip(summed, sorted(params), strict=True):
        torch.testing.assert_close(value, sum(one[name] for one in slow), rtol=1e-3, atol=1e-5)


def test_codes_of_the_perturbed_gradients_are_clipped_one_by_one(
    tunables: dict[str, Tunable], features: dict[str, list[Feature]]
) -> None:
    tunable, chosen = tunables["encoder"], features["encoder"]
    params = random_params(tunable)
    layout = Layout.of(params)
    codec = make_codec(CodecSettings(name="random-projection", ratio=4.0), layout, None, 3)
    scales = {name: 0.5 if name == "prefix" else 1.0 for name in params}
    slow = [slow_perturbed_gradient(tunable, params, f, False) for f in chosen]
    flat = torch.stack([torch.cat([(g[n] * scales[n]).flatten() for n in sorted(g)]) for g in slow])
    codes = codec.project(flat)
    clip = float(codes.norm(dim=1).median())
    wanted = (codes * (clip / codes.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0)
    for tokens in (1, 10_000):
        got = clipped_gradient_sum(
            tunable,
            params,
            chosen,
            clip_norm=clip,
            scales=scales,
            max_tokens=tokens,
            codec=codec,
            perturbation=Perturbation(GAMMA),
        )
        assert 0 < got.clipped < len(chosen)
        torch.testing.assert_close(got.sums[0], wanted, rtol=1e-3, atol=1e-5)


def moved_by(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    chosen: Sequence[Feature],
    out: int,
    clip: float,
    form: str,
    gamma: float = GAMMA,
) -> float:
    """Distance of the clipped sums with and without one example, by form of the perturbation."""
    perturbation = Perturbation(gamma)
    scales = dict.fromkeys(params, 1.0)

    def total(batch: Sequence[Feature]) -> Tensor:
        point, own = params, perturbation
        if form == "batch":
            raw = gradient_sum(tunable, params, batch, max_tokens=64)
            ascent = dict(zip(sorted(params), raw, strict=True))
            point, own = perturbation.perturbed(params, ascent), None
        found = clipped_gradient_sum(
            tunable,
            point,
            batch,
            clip_norm=clip,
            scales=scales,
            max_tokens=64,
            perturbation=own,
        )
        return torch.cat([value.flatten().double() for value in found.sums])

    return float((total(chosen) - total([*chosen[:out], *chosen[out + 1 :]])).norm())


@given(
    kind=st.sampled_from(KINDS),
    out=st.integers(0, 11),
    clip=st.floats(1e-3, 10),
    gamma=st.floats(1e-3, 3),
    spread=st.floats(0.01, 3),
    seed=st.integers(0, 1000),
)
@SLOW
def test_one_example_moves_the_perturbed_sum_by_at_most_the_clipping_norm(
    kind: str,
    out: int,
    clip: float,
    gamma: float,
    spread: float,
    seed: int,
    tunables: dict[str, Tunable],
    features: dict[str, list[Feature]],
) -> None:
    tunable = tunables[kind]
    params = {n: v * spread for n, v in random_params(tunable, seed).items()}
    moved = moved_by(tunable, params, features[kind], out, clip, "per-example", gamma)
    assert moved <= clip * (1 + 12 * 2**-20)


@pytest.mark.parametrize("kind", KINDS)
def test_the_paper_s_form_moves_by_more_than_the_clipping_norm(
    kind: str, tunables: dict[str, Tunable], features: dict[str, list[Feature]]
) -> None:
    """Why ``batch`` has no guarantee: one example turns the perturbation, which turns all the others.

    The form that keeps the guarantee reaches the clipping norm on the same examples, and not more.
    """
    tunable, clip = tunables[kind], 1e-3
    params = random_params(tunable)
    chosen = features[kind]

    def most(form: str, gamma: float) -> float:
        found = (
            moved_by(tunable, params, chosen, out, clip, form, gamma) for out in range(len(chosen))
        )
        return max(found) / clip

    assert most("per-example", 2.0) == pytest.approx(1, rel=1e-3)
    assert most("batch", 2.0) > 1.5


@given(data=st.data())
@SLOW
def test_an_example_s_gradient_is_the_same_whoever_else_is_in_the_batch(
    data: st.DataObject, tunables: dict[str, Tunable], features: dict[str, list[Feature]]
) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    tunable, chosen = tunables[kind], features[kind]
    params = random_params(tunable, data.draw(st.integers(0, 1000)))
    one = data.draw(st.integers(0, 11))
    others = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=11))
    perturbation = Perturbation(data.draw(st.floats(0.01, 1)))

    def first_of(batch: Sequence[Feature]) -> dict[str, Tensor]:
        rows = per_example_gradients(tunable, params, tunable.task.collate(batch), perturbation)
        return {name: value[0] for name, value in rows.items()}

    by_itself = first_of([chosen[one]])
    among = first_of([chosen[one], *(chosen[i] for i in others)])
    for name, value in by_itself.items():
        torch.testing.assert_close(among[name], value, rtol=2e-3, atol=2e-5)


def test_an_example_without_a_finite_gradient_leaves_the_others_alone(
    tiny_settings: Make, features: dict[str, list[Feature]]
) -> None:
    from fedllm.models.backbone import load_backbone
    from fedllm.training.tunable import make_tunable

    settings = tiny_settings()
    tunable = make_tunable(settings, load_backbone(settings.model.name, device="cpu"))
    params = random_params(tunable)
    chosen = features["encoder"]
    word = chosen[4].input_ids[1]
    good = [f for f in chosen if word not in f.input_ids]
    assert 5 < len(good) < len(chosen)

    def total(some: Sequence[Feature]) -> Any:
        return clipped_gradient_sum(
            tunable,
            params,
            some,
            clip_norm=0.5,
            scales=dict.fromkeys(params, 1.0),
            max_tokens=10_000,
            perturbation=Perturbation(GAMMA),
        )

    before = total(good)
    with torch.no_grad():
        tunable.backbone.model.get_input_embeddings().weight[word] = float("inf")
    after = total(chosen)
    assert after.nonfinite == len(chosen) - len(good)
    for value, wanted in zip(after.sums, before.sums, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-6)


@given(
    size=st.sampled_from([0.0, 1e-44, 1e-30, 1e-6, 1.0, 1e6, 1e30, 3e38]),
    weight=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    seed=st.integers(0, 100),
    batch=st.integers(0, 3),
)
@SLOW
def test_each_layer_moves_by_its_own_radius_whatever_the_gradient_s_size(
    size: float, weight: float, seed: int, batch: int
) -> None:
    """||v_l|| = gamma ||w_l||, and zero for a zero gradient; no overflow, no underflow."""
    rng = torch.Generator().manual_seed(seed)
    params = {
        "prefix": torch.randn(3, 2, 2, 4, 5, generator=rng) * weight,
        "head.weight": torch.randn(3, 7, generator=rng),
        "head.bias": torch.randn(3, generator=rng),
    }
    lead = (batch,) if batch else ()
    gradients = {n: torch.rand(*lead, *v.shape, generator=rng) * size for n, v in params.items()}
    found = Perturbation(0.1, head=True).at(params, gradients)
    assert set(found) == {"prefix", "head.weight"}
    axes = {"prefix": (-4, -3, -2, -1), "head.weight": (-2, -1)}
    for name, v in found.items():
        assert v.shape == gradients[name].shape
        assert bool(v.isfinite().all())
        norms = torch.linalg.vector_norm(v.double(), dim=axes[name])
        radius = 0.1 * torch.linalg.vector_norm(params[name].double(), dim=axes[name])
        some = torch.linalg.vector_norm(gradients[name].double(), dim=axes[name]) > 0
        wanted = torch.where(some, radius.expand_as(norms), 0.0)
        torch.testing.assert_close(norms, wanted, rtol=1e-4, atol=1e-12)
    assert set(Perturbation(0.1).at(params, gradients)) == {"prefix"}


def test_rounds_head_and_settings(tiny_settings: Make) -> None:
    settings = tiny_settings(**{"awp.form": "per-example", "awp.gamma": 0.2, "awp.rounds": 2})
    found = [perturbation_of(settings.awp, number) for number in (1, 2, 3)]
    assert found == [Perturbation(0.2), Perturbation(0.2), None]
    assert perturbation_of(tiny_settings().awp, 1) is None
    assert is_perturbed(tiny_settings(**{"awp.form": "batch"}).awp, 10**6)
    prefix = {"prefix": torch.ones(1, 2, 1, 1, 1)}
    with pytest.raises(ValueError, match=r"Expected a task with a head for awp.head=true"):
        Perturbation(0.1, head=True).at(prefix, prefix)
    with pytest.raises(
        ValueError, match=r"Expected prefix.length > 0, another adapter.form or awp.head=true"
    ):
        tiny_settings(**{"awp.form": "batch", "prefix.length": 0})
    assert tiny_settings(**{"awp.form": "batch", "prefix.length": 0, "awp.head": True})
