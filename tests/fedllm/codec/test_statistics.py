"""Sensitivities of the statistics: never above the bound, and the bound is reached."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.codec.layout import Layout
from fedllm.codec.statistics import Kind, Statistics
from privacy.accountants import make_accountant
from privacy.guarantee import Relation
from privacy.randomness import generator

LAYOUT = Layout({"prefix": (2, 2, 2, 3, 4), "head.weight": (2, 5), "head.bias": (2,)})
D = LAYOUT.dimension
KINDS = get_args(Kind)
ADD, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE
SLACK = 1 + 1e-6


def change(statistics: Statistics, a: torch.Tensor, b: torch.Tensor) -> float:
    return float((statistics.of(a) - statistics.of(b)).norm())


def vectors(draw: np.random.Generator, clip: float) -> list[torch.Tensor]:
    """Neighbours of many shapes: spread out, in one block, in one coordinate, opposite, scaled."""
    a = torch.from_numpy(draw.standard_normal(D)).float()
    made = [a, -a, a.abs(), torch.zeros(D), torch.from_numpy(draw.standard_normal(D)).float()]
    for block in (LAYOUT.blocks[0], LAYOUT.blocks[-1]):
        one = torch.zeros(D)
        one[block.slice] = 1.0
        made += [one, -one]
    unit = torch.eye(D)[int(draw.integers(D))]
    made += [unit, -unit]
    return [v * clip * float(draw.choice([0.3, 1.0, 50.0])) for v in made]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), clip=st.sampled_from([1e-3, 0.5, 20.0]))
def test_client_statistic_moves_no_more_than_proven(kind: Kind, seed: int, clip: float) -> None:
    statistics = Statistics(kind, LAYOUT, clip)
    made = torch.stack([statistics.of(v) for v in vectors(np.random.default_rng(seed), clip)])
    assert float(made.norm(dim=1).max()) <= statistics.sensitivity() * SLACK
    largest = float((made[:, None] - made).norm(dim=2).max())
    assert largest <= statistics.sensitivity(REPLACE) * SLACK


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 5))
def test_example_statistic_moves_no_more_than_proven(kind: Kind, seed: int, count: int) -> None:
    """Sums over examples that differ in one, whatever the others are."""
    statistics = Statistics(kind, LAYOUT, clip=0.5)
    draw = np.random.default_rng(seed)
    some = torch.stack(vectors(draw, 0.5))
    others = some[draw.integers(0, len(some), count)]
    without = statistics.total(others)
    made = torch.stack([statistics.total(torch.cat([others, a[None]])) for a in some])
    assert float((made - without).norm(dim=1).max()) <= statistics.sensitivity() * SLACK
    largest = float((made[:, None] - made).norm(dim=2).max())
    assert largest <= statistics.sensitivity(REPLACE) * SLACK


def worst(kind: Kind, relation: Relation, seed: int) -> float:
    """The largest change that gradient ascent over the neighbours finds, over the bound."""
    statistics = Statistics(kind, LAYOUT, clip=1.0)
    torch.manual_seed(seed)
    free = torch.randn(2, D, dtype=torch.float64)
    if seed % 2:  # a sparse start: the extremes are concentrated
        free = free * (torch.rand(2, D) < 0.05)
    free.requires_grad_(True)
    optimizer = torch.optim.Adam([free], lr=0.1)

    def inside(v: torch.Tensor) -> torch.Tensor:
        return v / v.norm().clamp(min=1.0)

    def statistic(a: torch.Tensor) -> torch.Tensor:
        parts = []
        if kind == "layerwise":
            means = torch.stack([a[b.slice].sum() / math.sqrt(b.size) for b in LAYOUT.blocks])
            parts.append(means / statistics.first_weight)
        if kind == "low-rank":
            parts.append(a / statistics.first_weight)
        for group, count in statistics.partitions:
            sums = torch.zeros(count, dtype=a.dtype).index_add(0, group, a.square())
            parts.append(sums / statistics.second_weight)
        return torch.cat(parts)

    def neighbours() -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (inside(v) for v in free)
        return a, b * 0 if relation is ADD else b

    for _ in range(60):
        a, b = neighbours()
        optimizer.zero_grad()
        (-(statistic(a) - statistic(b)).square().sum()).backward()
        optimizer.step()
    a, b = (v.detach() for v in neighbours())
    assert torch.allclose(statistic(a), statistics.of(a), atol=1e-6)
    return change(statistics, a, b) / statistics.sensitivity(relation)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_adversarial_neighbours_stay_below_the_bound(kind: Kind, relation: Relation) -> None:
    found = max(worst(kind, relation, seed) for seed in range(4))
    assert found <= SLACK
    # Not vacuous: an optimiser comes near the bound.
    assert found > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_client_bounds_are_reached(kind: Kind) -> None:
    """Neighbours at which the client's bounds hold with equality: none of them can be lowered."""
    statistics = Statistics(kind, LAYOUT, clip=2.0)
    bias = LAYOUT.blocks[0]  # head.bias: two numbers
    one = torch.zeros(D)
    one[bias.start] = 2.0
    if kind == "layerwise":
        one[bias.slice] = math.sqrt(2.0)
    other = torch.zeros(D)
    other[-1] = 2.0
    assert float(statistics.of(one).norm()) == pytest.approx(statistics.sensitivity(), abs=1e-6)
    joint = kind in ("layerwise", "low-rank")
    pair = (one, -one) if joint else (one, other)
    bound = statistics.sensitivity(REPLACE)
    assert change(statistics, *pair) == pytest.approx(bound, abs=1e-6)


@settings(deadline=None, max_examples=300)
@given(seed=st.integers(0, 2**32), sparse=st.floats(0.01, 1.0))
def test_second_moments_come_free_beside_first_ones(seed: int, sparse: float) -> None:
    """||x - x'||^2 + ||y - y'||^2 / 2 <= 4, the inequality behind mu = 2/s, for blocks of any size."""
    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((2, 12)) * (draw.random((2, 12)) < sparse)
    b = b if draw.random() < 0.5 else -a + 0.1 * b
    a, b = (v / max(1.0, float(np.linalg.norm(v))) for v in (a, b))
    cut = sorted(draw.integers(0, 13, 3))
    y = [np.array([float(p @ p) for p in np.split(v, cut)]) for v in (a, b)]
    assert float(((a - b) ** 2).sum() + ((y[0] - y[1]) ** 2).sum() / 2) <= 4 + 1e-9


def test_mu_is_the_page_s() -> None:
    """Noise s on x and sqrt(2) s on y: mu = 2/s (replace-one), 1.225/s (zero-out)."""
    statistics = Statistics("layerwise", LAYOUT, clip=1.0)
    multiplier = 3.0
    s = multiplier * statistics.first_weight
    assert multiplier * statistics.second_weight == pytest.approx(math.sqrt(2) * s)
    assert statistics.mu(multiplier, REPLACE) == pytest.approx(2 / s)
    assert statistics.mu(multiplier) == pytest.approx(math.sqrt(1.5) / s)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_event_covers_mu_under_both_relations(kind: Kind, relation: Relation) -> None:
    statistics = Statistics(kind, LAYOUT, clip=1.0)
    exact = statistics.mu(2.0, relation)
    accounted = make_accountant("gdp-exact", relation).mu({statistics.event(2.0): 1})
    assert accounted is not None
    assert accounted >= exact * (1 - 1e-12)
    if relation is ADD:
        assert accounted == pytest.approx(exact)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("divisor", [1.0, 64.0])
def test_release_adds_the_noise_that_the_event_says(kind: Kind, divisor: float) -> None:
    statistics = Statistics(kind, LAYOUT, clip=1.0)
    total = statistics.total(torch.ones(3, D))
    rng = generator(0, "test")
    drawn = torch.stack([statistics.release(total, 2.0, rng, divisor=divisor) for _ in range(300)])
    off = drawn - total / divisor
    assert float(off.std()) == pytest.approx(2.0 * statistics.sensitivity() / divisor, rel=0.05)


def test_sums_over_examples_are_sums_of_single_statistics() -> None:
    rows = torch.stack(vectors(np.random.default_rng(0), 1.0))
    for kind in KINDS:
        statistics = Statistics(kind, LAYOUT, clip=1.0)
        singly = torch.stack([statistics.of(row) for row in rows]).sum(0)
        assert torch.allclose(statistics.total(rows), singly, atol=1e-12)


def test_unclipped_or_broken_vectors_are_bounded() -> None:
    statistics = Statistics("coordinate", LAYOUT, clip=1.0)
    assert float(statistics.of(torch.full((D,), 1e20)).norm()) <= 1
    broken = torch.ones(D)
    broken[3] = float("nan")
    assert float(statistics.of(broken).norm()) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Statistics("layers", LAYOUT, 1.0), "prior"),  # type: ignore[arg-type]
        (lambda: Statistics("factored", LAYOUT, 0.0), "clip=0.0"),
        (lambda: Statistics("factored", LAYOUT, 1.0).of(torch.zeros(D + 1)), f"\\({D},\\)"),
        (
            lambda: Statistics("factored", LAYOUT, 1.0).release(torch.zeros(3), 1.0, generator(0)),
            "statistic of shape",
        ),
    ],
)
def test_errors_name_what_was_expected(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]
