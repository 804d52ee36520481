"""The benchmark of a head alone: what its directions hold, and the size of its noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedllm.silos import load_federation
from fedllm.tasks.base import expand_params
from fedllm.tunable import initial_params, shared_tunable
from privacy.randomness import generator
from simulations.benchmark import head_features
from simulations.benchmark.codec_head import directions, features, train


def texts(count: int, seed: int) -> Tensor:
    """Features with a large common part, and a 1 for the bias."""
    rng = generator(seed, "texts")
    own = torch.from_numpy(rng.standard_normal((count, 12))).float()
    return torch.cat([own + 3.0, torch.ones(count, 1)], dim=1)


@pytest.mark.parametrize("length", [0, 3])
def test_a_head_on_the_features_answers_as_the_model_does(
    length: int,
    tiny_settings: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head_features, "cache_folder", lambda: tmp_path)
    settings = tiny_settings(**{"prefix.length": length, "prefix.init_std": 0.5})
    data = features(settings)
    again = features(settings)  # from the cache
    assert all(torch.equal(data[name], again[name]) for name in data)
    silo = load_federation(settings).silos[0]
    tunable = shared_tunable(settings)
    batch = tunable.task.collate(tunable.task.features(silo.train.records)[:5])
    rng = torch.Generator().manual_seed(3)
    params = initial_params(tunable, settings)
    for name in (head_features.WEIGHT, head_features.BIAS):
        params[name] = torch.randn(params[name].shape, generator=rng)
    rows = torch.cat([params[head_features.WEIGHT], params[head_features.BIAS][:, None]], dim=1)
    with tunable.with_prefix(expand_params(params, 1)):
        expected = tunable.task.logits(expand_params(params, 1), batch)[:5]  # type: ignore[attr-defined]
    found = data[f"x.{silo.name}"][:5] @ rows.T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert data[f"y.{silo.name}"].dtype == torch.float32


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
