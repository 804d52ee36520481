"""The flat vector and its blocks; priors from releases."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedllm.codec import Layout, Prior
from fedllm.codec.prior import chance_of_noise, prior_from_gradients, prior_from_releases
from fedllm.codec.statistics import Kind, Statistics
from fedllm.training.steps import split_like
from privacy.randomness import generator

SHAPES = {"prefix": (2, 2, 3, 4, 8), "head.weight": (2, 16), "head.bias": (2,)}
LAYOUT = Layout(SHAPES)
D = LAYOUT.dimension


def test_flat_order_is_that_of_local_training() -> None:
    params = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    flat = LAYOUT.flatten(params)
    pieces = split_like(flat, params)
    back = LAYOUT.unflatten(flat)
    for name, piece in zip(sorted(params), pieces, strict=True):
        assert torch.equal(piece, params[name])
        assert torch.equal(back[name], params[name])
    assert Layout.of(params) == LAYOUT == Layout.from_json(LAYOUT.to_json())


def test_blocks_are_layers_and_keys_or_values() -> None:
    prefix = torch.zeros(SHAPES["prefix"])
    prefix[1, 0] = 1.0
    params = {name: torch.zeros(shape) for name, shape in SHAPES.items()} | {"prefix": prefix}
    flat = LAYOUT.flatten(params)
    hit = [b.name for b in LAYOUT.blocks if bool(flat[b.slice].any())]
    assert hit == ["prefix.1.key"]
    assert sum(b.size for b in LAYOUT.blocks) == D
    assert all(bool((LAYOUT.block_of[b.slice] == n).all()) for n, b in enumerate(LAYOUT.blocks))


def test_partition_groups_by_block_and_axes() -> None:
    group, count = LAYOUT.partition((0, 2))
    block = next(b for b in LAYOUT.blocks if b.name == "prefix.0.value")
    inside = group[block.slice].reshape(3, 4, 8)
    assert bool((inside == inside[:, :1]).all())
    assert inside.unique().numel() == 3 * 8
    assert count == group.max() + 1 == group.unique().numel()


def test_layout_errors() -> None:
    with pytest.raises(ValueError, match="not empty"):
        Layout({})
    with pytest.raises(ValueError, match="shapes"):
        LAYOUT.flatten({"prefix": torch.zeros(3)})
    with pytest.raises(ValueError, match="vector of shape"):
        LAYOUT.unflatten(torch.zeros(3))


def separable(count: int) -> torch.Tensor:
    """Gradients whose variance is a product of head-by-position and head-by-dimension factors."""
    rng = generator(3)
    scale = torch.ones(D)
    for block in LAYOUT.blocks:
        if len(block.shape) == 3:
            h, p, j = block.shape
            a = torch.from_numpy(rng.random((h, p, 1)) + 0.05)
            b = torch.from_numpy(rng.random((h, 1, j)) + 0.05)
            scale[block.slice] = (a * b).reshape(-1).float()
    return torch.from_numpy(rng.standard_normal((count, D))).float() * scale


@pytest.mark.parametrize("kind", get_args(Kind))
def test_prior_has_the_gradients_energy(kind: Kind) -> None:
    rows = separable(200) + 0.2
    prior = prior_from_gradients(kind, LAYOUT, rows, rank=2)
    assert prior.energy == pytest.approx(float(rows.square().sum(1).mean()), rel=0.02)
    drawn = prior.sample(400, generator(0))
    assert float(drawn.square().sum(1).mean()) == pytest.approx(prior.energy, rel=0.05)
    block = LAYOUT.blocks[3]
    share = [float(x[:, block.slice].square().sum() / x.square().sum()) for x in (rows, drawn)]
    assert share[0] == pytest.approx(share[1], rel=0.1)


def test_layerwise_prior_is_the_papers() -> None:
    rows = separable(100) + 0.3
    prior = prior_from_gradients("layerwise", LAYOUT, rows)
    for block in LAYOUT.blocks:
        part = rows[:, block.slice]
        assert torch.allclose(prior.mean[block.slice], part.mean(), atol=1e-4)
        expected = part.square().mean() - part.mean().square()
        assert torch.allclose(prior.variance[block.slice], expected, rtol=1e-3)


def test_factored_prior_finds_a_table_of_products() -> None:
    rows = separable(1500)
    prior = prior_from_gradients("factored", LAYOUT, rows)
    truth = rows.square().mean(0)
    inside = LAYOUT.blocks[3].slice
    found = torch.corrcoef(torch.stack([prior.second_moments[inside], truth[inside]]))[0, 1]
    assert float(found) > 0.98


def test_coordinate_prior_is_the_second_moments() -> None:
    rows = separable(50)
    prior = prior_from_gradients("coordinate", LAYOUT, rows)
    assert torch.allclose(prior.second_moments, rows.square().mean(0), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("divisor", [1.0, 8.0])
def test_noisy_releases_make_a_valid_prior(kind: Kind, divisor: float) -> None:
    statistics = Statistics(kind, LAYOUT, clip=1.0)
    rng = generator(0)
    rows = separable(20)
    for multiplier in (0.01, 1.0, 100.0):
        made = [
            statistics.release(divisor * statistics.of(r), multiplier, rng, divisor=divisor)
            for r in rows
        ]
        prior = prior_from_releases(
            statistics, torch.stack(made), noise_multiplier=multiplier, divisor=divisor
        )
        assert bool(torch.isfinite(prior.sample(4, rng)).all())
        assert bool((prior.variance >= 0).all())
        assert prior.energy > 0


@pytest.mark.parametrize("kind", get_args(Kind))
def test_example_statistics_give_the_prior_of_a_mean(kind: Kind) -> None:
    """Statistics of single examples, in groups of 32: the energy of a group's mean is found."""
    examples = separable(320) + 0.05
    groups = examples.reshape(10, 32, D)
    statistics = Statistics(kind, LAYOUT, clip=float(examples.norm(dim=1).max()) * 1.01)
    rng = generator(0)
    made = torch.stack(
        [statistics.release(statistics.total(g), 0.0, rng, divisor=32) for g in groups]
    )
    prior = prior_from_releases(statistics, made, divisor=32.0, rank=1)
    means = groups.mean(1)
    if kind in ("layerwise", "low-rank"):  # the others know nothing of a common mean
        expected = float(means.square().sum(1).mean())
        assert prior.energy == pytest.approx(expected, rel=0.35)
    found = float(prior.variance.sum())
    assert found == pytest.approx(float(means.var(0).sum()), rel=0.35)


def test_noise_that_hides_all_shrinks_coordinates_to_their_block() -> None:
    statistics = Statistics("coordinate", LAYOUT, clip=1.0)
    rng = generator(1)
    made = torch.stack([statistics.release(statistics.of(r), 50.0, rng) for r in separable(10)])
    hidden = prior_from_releases(statistics, made, noise_multiplier=50.0)
    trusted = prior_from_releases(statistics, made, noise_multiplier=0.0)
    block = LAYOUT.blocks[3]

    def spread(prior: Prior) -> float:
        return float(prior.variance[block.slice].std())

    assert spread(hidden) < 0.5 * spread(trusted)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_prior_of_nothing_but_noise_is_flat(kind: Kind) -> None:
    statistics = Statistics(kind, LAYOUT, 2.0)
    hidden = torch.zeros(1, statistics.size, dtype=torch.float64)
    prior = prior_from_releases(statistics, hidden, noise_multiplier=50.0, divisor=4.0)
    assert prior.energy == pytest.approx(2.0**2 / 4)
    assert bool((prior.variance == prior.variance[0]).all())


@pytest.mark.parametrize("kind", get_args(Kind))
def test_statistics_that_are_noise_are_told_from_those_that_say_something(kind: Kind) -> None:
    """The probability is a p-value: uniform where there is noise alone, tiny where there are gradients."""
    statistics = Statistics(kind, LAYOUT, 2.0)
    vectors = separable(200)
    signal = statistics.total(2 * vectors / vectors.norm(dim=1, keepdim=True))
    chances = []
    for total, seeds in ((torch.zeros_like(signal), 400), (signal, 20)):
        found = []
        for seed in range(seeds):
            rng = generator(seed, "test")
            rows = [statistics.release(total, 0.3, rng, divisor=d) for d in (50.0, 100.0)]
            mean = float(np.mean([50.0**-2, 100.0**-2]) ** -0.5)
            found.append(chance_of_noise(torch.stack(rows), noise_multiplier=0.3, divisor=mean))
        chances.append(found)
    assert kstest(chances[0], "uniform").pvalue > 1e-3
    assert max(chances[1]) < 1e-3
    assert chance_of_noise(torch.zeros(2, 3), noise_multiplier=0.0) is None


def test_prior_state_and_errors() -> None:
    prior = prior_from_gradients("low-rank", LAYOUT, separable(20), rank=3)
    again = Prior.from_state(*prior.state())
    assert again.version == prior.version
    assert torch.allclose(prior.basis @ prior.basis.T, torch.eye(len(prior.basis)), atol=1e-5)
    with pytest.raises(ValueError, match="shape"):
        prior_from_gradients("factored", LAYOUT, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="not all zero"):
        prior_from_gradients("factored", LAYOUT, torch.zeros(3, D))
    with pytest.raises(ValueError, match="finite"):
        prior_from_releases(Statistics("coordinate", LAYOUT, 1.0), torch.full((1, D), float("nan")))
    with pytest.raises(ValueError, match=">= 0"):
        Prior("coordinate", torch.zeros(2), -torch.ones(2), torch.zeros(0, 2), torch.zeros(0))


def test_directions_never_take_all_of_few_rows() -> None:
    """With as many directions as rows nothing would be left to choose coordinates by."""
    prior = prior_from_gradients("low-rank", LAYOUT, separable(10), rank=100)
    assert len(prior.basis) == 5
    assert float(prior.variance.sum()) > 0.1 * prior.energy
    assert len(prior_from_gradients("low-rank", LAYOUT, separable(1), rank=3).basis) == 0
