"""The benchmark of a head alone: what its directions hold, and the size of its noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from privacy.randomness import generator
from simulations.benchmark.codec_head import directions, train


def texts(count: int, seed: int) -> Tensor:
    """Features with a large common part, and a 1 for the bias."""
    rng = generator(seed, "texts")
    own = torch.from_numpy(rng.standard_normal((count, 12))).float()
    return torch.cat([own + 3.0, torch.ones(count, 1)], dim=1)


def test_directions_of_moved_labels_leave_out_what_texts_share() -> None:
    public = texts(400, 0)
    bias = {}
    for how in ("labels", "answers", "shared"):
        rows = directions(public, how, 6, generator(1, how))
        assert torch.allclose(rows @ rows.T, torch.eye(6), atol=1e-5)
        bias[how] = float(rows[:, -1].norm())
    assert bias["labels"] < 1e-4 < bias["answers"]
    assert bias["shared"] > 0.05


@pytest.mark.parametrize("coded", [False, True])
def test_noise_has_the_mechanisms_size(coded: bool, tiny_settings: Callable[..., Any]) -> None:
    """Silos whose classes cancel: what is left of one round is the noise, rate * z / silos a number."""
    settings = tiny_settings(**{"server.rounds": 1, "client.sampling_rate": None})
    data: dict[str, Tensor] = {"x": texts(10, 3), "y": torch.zeros(10)}
    for silo in range(4):
        half = texts(20, silo)
        data[f"x.{silo}"] = torch.zeros_like(half)
        data[f"y.{silo}"] = torch.zeros(20)
    rows = torch.eye(13)[:5] if coded else None
    heads = torch.stack([train(data, settings, rows, 0.5, 3.0, seed) for seed in range(300)])
    seen = heads[:, :5] if coded else heads
    assert float(seen.std()) == pytest.approx(0.5 * 3.0 / 4, rel=0.1)
    assert not coded or float(heads[:, 5:].abs().max()) == 0.0
