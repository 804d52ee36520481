"""Sharpness without a layer's prefix: against its definition, and each example by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.data.silos import load_federation
from fedllm.flatness.layer_scores import example_sharpness, make_sharpness, mean_sharpness
from fedllm.models.attention import prefix_scope
from fedllm.models.prefix import PREFIX
from fedllm.training.statistics import statistics_point
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from privacy.randomness import generator
from tests.support.deep import LAYERS, deep_settings

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, word_files: Path) -> Make:
    return deep_settings(tmp_path_factory.mktemp("deep"), word_files)


@pytest.fixture(scope="module")
def tunable(make: Make) -> Tunable:
    return shared_tunable(make())


@pytest.fixture(scope="module")
def features(make: Make, tunable: Tunable) -> list[Feature]:
    return tunable.task.features(load_federation(make()).silos[0].train.records[:9])


@pytest.fixture(scope="module")
def point(make: Make, tunable: Tunable) -> dict[str, Tensor]:
    return statistics_point(initial_params(tunable, make()), 3)


def loss(
    tunable: Tunable, point: dict[str, Tensor], prefix: Tensor, layers: list[int], feature: Feature
) -> Tensor:
    """Loss of one example alone, with this prefix in these layers."""
    head = {name: value[None] for name, value in point.items() if name != PREFIX}
    with prefix_scope(tunable.backbone.model, prefix[None], layers):
        return tunable.task.losses(head, tunable.task.collate([feature]))[0]


def by_definition(
    tunable: Tunable, point: dict[str, Tensor], feature: Feature, settings: Any, layer: int
) -> float:
    """S_l of one example, step by step."""
    rest = [other for other in range(LAYERS) if other != layer]
    radius = settings.layers.radius * float(point[PREFIX].norm())
    prefix = point[PREFIX][rest].clone().requires_grad_(True)
    before = loss(tunable, point, prefix, rest, feature)
    if settings.layers.measure == "ascent":
        (gradient,) = torch.autograd.grad(before, [prefix])
        moves = [radius * gradient / gradient.norm()]
    else:
        rng = generator(settings.seed, "layers", "directions")
        shape = (settings.layers.directions, *point[PREFIX].shape)
        drawn = torch.from_numpy(rng.standard_normal(shape)).float()[:, rest]
        moves = [s * radius * v / v.norm() for v in drawn for s in (1, -1)]
    after = [loss(tunable, point, prefix + move, rest, feature).item() for move in moves]
    return sum(after) / len(after) - before.item()


@pytest.mark.parametrize("measure", ["ascent", "random"])
def test_each_example_is_scored_by_the_definition(
    measure: str, make: Make, tunable: Tunable, features: list[Feature], point: dict[str, Tensor]
) -> None:
    settings = make(**{"layers.measure": measure, "layers.radius": 0.5, "layers.directions": 3})
    found = example_sharpness(tunable, point, features, range(LAYERS), make_sharpness(settings))
    assert found.shape == (len(features), LAYERS)
    assert found.dtype == torch.float64
    for row, feature in enumerate(features):
        wanted = [by_definition(tunable, point, feature, settings, n) for n in range(LAYERS)]
        assert found[row].tolist() == pytest.approx(wanted, abs=2e-6)
    if measure == "ascent":  # first order: up
        assert float(found.min()) > 0.01


def test_an_example_moves_its_own_row_alone(
    make: Make, tunable: Tunable, features: list[Feature], point: dict[str, Tensor]
) -> None:
    """What the private forms stand on: no example reaches another's difference."""
    settings = make(**{"layers.radius": 0.5, "client.max_tokens": 24})
    whole = example_sharpness(tunable, point, features, range(LAYERS), make_sharpness(settings))
    changed = [*features[:-1], Feature(input_ids=[2, *range(40, 58)], target=0)]
    other = example_sharpness(tunable, point, changed, range(LAYERS), make_sharpness(settings))
    assert torch.allclose(whole[:-1], other[:-1], atol=2e-6)
    assert float((whole[-1] - other[-1]).abs().max()) > 1e-3
    alone = [
        example_sharpness(tunable, point, [f], range(LAYERS), make_sharpness(settings))
        for f in features
    ]
    assert torch.allclose(whole, torch.cat(alone), atol=2e-6)


@pytest.mark.parametrize("measure", ["ascent", "example-ascent", "random"])
def test_the_mean_loss_is_moved_along_the_mean_gradient(
    measure: str, make: Make, tunable: Tunable, features: list[Feature], point: dict[str, Tensor]
) -> None:
    settings = make(
        **{"layers.measure": measure, "layers.radius": 0.5, "client.max_tokens": 24},
    )
    found = mean_sharpness(tunable, point, features, [0, 2, 3], make_sharpness(settings))
    if measure != "ascent":  # random: the same moves for all
        each = example_sharpness(tunable, point, features, [0, 2, 3], make_sharpness(settings))
        assert torch.allclose(found, each.mean(0), atol=2e-6)
        return
    radius = 0.5 * float(point[PREFIX][[0, 2, 3]].norm())
    for place, rest in enumerate(([2, 3], [0, 3], [0, 2])):
        prefix = point[PREFIX][rest].clone().requires_grad_(True)
        before = torch.stack([loss(tunable, point, prefix, rest, f) for f in features]).mean()
        (gradient,) = torch.autograd.grad(before, [prefix])
        moved = prefix.detach() + radius * gradient / gradient.norm()
        after = torch.stack([loss(tunable, point, moved, rest, f) for f in features]).mean()
        assert float(found[place]) == pytest.approx(float((after - before).detach()), abs=2e-6)


def test_a_head_of_zeros_sees_no_prefix(
    make: Make, tunable: Tunable, features: list[Feature], point: dict[str, Tensor]
) -> None:
    """Why scores before any training are taken with a random head."""
    start = initial_params(tunable, make())
    flat = example_sharpness(tunable, start, features, range(LAYERS), make_sharpness(make()))
    assert float(flat.abs().max()) == 0
    assert (
        float(
            mean_sharpness(tunable, start, features, range(LAYERS), make_sharpness(make()))
            .abs()
            .max()
        )
        == 0
    )
    assert (
        float(
            example_sharpness(tunable, point, features, range(LAYERS), make_sharpness(make())).min()
        )
        > 0
    )


@pytest.mark.parametrize("wrong", [[1], [2, 1], [1, 1, 2], [0, LAYERS], []])
def test_candidates_without_a_prefix_are_refused(
    wrong: list[int], make: Make, tunable: Tunable, features: list[Feature], point: Any
) -> None:
    with pytest.raises(ValueError, match="at least two ascending layers"):
        example_sharpness(tunable, point, features, wrong, make_sharpness(make()))
    with pytest.raises(ValueError, match="Expected examples"):
        mean_sharpness(tunable, point, [], [0, 1], make_sharpness(make()))
