"""The random directions of a round: signs and scales from an announced seed, and the update they rebuild."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from black_box import BLACK_BOX
from torch import Tensor

from fedllm.training.black_box.directions import (
    Directions,
    DirectionsPlan,
    round_seed,
)

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def params() -> dict[str, Tensor]:
    """A prefix of 2 layers, 4 heads and 3 positions, and a head; no model is needed."""
    rng = torch.Generator().manual_seed(2)
    shapes = {"prefix": (2, 2, 4, 3, 4), "head.weight": (2, 16), "head.bias": (2,)}
    return {name: 0.3 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def test_directions_are_signs_times_scales_and_follow_from_the_seed(
    params: dict[str, Tensor], tiny_settings: Make
) -> None:
    settings = tiny_settings(**BLACK_BOX)
    one = Directions(DirectionsPlan.of(settings), params, "c0ffee")
    z = one.direction(1, 2)
    rms = params["prefix"].square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
    torch.testing.assert_close(z["prefix"].abs(), rms.expand_as(z["prefix"]))
    plain = tiny_settings(**BLACK_BOX, **{"zeroth_order.scale": "one"})
    other = Directions(DirectionsPlan.of(plain), params, "c0ffee")
    signs = other.direction(1, 2)
    assert all(bool((value.abs() == 1).all()) for value in signs.values())
    assert torch.equal(signs["prefix"] * rms, z["prefix"])
    again = Directions(DirectionsPlan.of(settings), params, "c0ffee").direction(1, 2)
    assert all(torch.equal(again[name], z[name]) for name in z)
    seen = {
        Directions(DirectionsPlan.of(settings), params, seed)
        .direction(step, k)["prefix"]
        .sign()
        .numpy()
        .tobytes()
        for seed in ("c0ffee", "c0ffef")
        for step in range(2)
        for k in range(3)
    }
    assert len(seen) == 12


def test_signs_are_fair_and_independent(params: dict[str, Tensor], tiny_settings: Make) -> None:
    settings = tiny_settings(
        **BLACK_BOX | {"zeroth_order.directions": 200, "zeroth_order.scale": "one"}
    )
    found = Directions(DirectionsPlan.of(settings), params, round_seed(0, "run", 1))
    rows = np.stack(
        [np.concatenate([v.flatten() for v in found.direction(0, k).values()]) for k in range(200)]
    )
    assert abs(rows.mean()) < 5.5 / rows.size**0.5
    for matrix in (rows, rows.T):  # directions among each other, coordinates among each other
        between = np.corrcoef(matrix)[np.triu_indices(matrix.shape[0], 1)]
        assert np.abs(between).max() < 6 / matrix.shape[1] ** 0.5


def test_a_subspace_is_what_all_rounds_move_in(
    params: dict[str, Tensor], tiny_settings: Make
) -> None:
    settings = tiny_settings(
        **BLACK_BOX | {"zeroth_order.directions": 40, "zeroth_order.scale": "one"},
        **{"zeroth_order.subspace": 6},
    )
    rows = [
        torch.cat(
            [
                v.flatten()
                for v in Directions(DirectionsPlan.of(settings), params, seed)
                .direction(0, k)
                .values()
            ]
        )
        for seed in ("1", "2")
        for k in range(40)
    ]
    stacked = torch.stack(rows).double()
    assert bool((stacked.abs() == 1).all())
    assert int(torch.linalg.matrix_rank(stacked)) == 6
    too_many = tiny_settings(**BLACK_BOX, **{"zeroth_order.subspace": 10**6})
    with pytest.raises(ValueError, match=r"zeroth_order\.subspace <= "):
        Directions(DirectionsPlan.of(too_many), params, "1")
    with pytest.raises(ValueError, match="hexadecimal"):
        Directions(DirectionsPlan.of(settings), params, "no seed")


def test_the_update_is_the_mean_over_directions_summed_over_steps(
    params: dict[str, Tensor], tiny_settings: Make
) -> None:
    settings = tiny_settings(**BLACK_BOX | {"client.learning_rate": 0.3, "client.local_steps": 2})
    directions = Directions(DirectionsPlan.of(settings), params, "ab")
    numbers = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    expected = {name: torch.zeros_like(value) for name, value in params.items()}
    for step in range(2):
        for k in range(3):
            for name, z in directions.direction(step, k).items():
                expected[name] += -0.3 / 3 * numbers[step, k] * z
    found = directions.update(numbers)
    for name in params:
        torch.testing.assert_close(found[name], expected[name])
    with pytest.raises(ValueError, match=r"shape \(steps, 3\)"):
        directions.update(numbers[:, :2])


def test_the_announced_seed_tells_nothing_of_the_runs_seed_and_changes_with_the_round() -> None:
    seeds = {round_seed(s, run, r) for s in (0, 1) for run in ("a", "b") for r in (1, 2)}
    assert len(seeds) == 8
    assert all(len(seed) == 32 for seed in seeds)
