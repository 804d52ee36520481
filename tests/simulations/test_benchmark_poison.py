"""The benchmark of hostile silos trains as the system does, and its hostile silos do what they are called."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedllm.data.silos import load_federation
from fedllm.settings.experiment import Settings
from fedllm.tasks.base import expand_params
from fedllm.training.gradients import clipped_gradient_sum
from fedllm.training.tunable import initial_params, make_tunable, shared_tunable
from privacy.mechanisms.clipping import clip_and_sum
from server.aggregation import Contribution
from simulations.benchmarks.poison.__main__ import largest_share
from simulations.benchmarks.poison.attacks import ATTACKS, LOUD, Hostile, flipped
from simulations.benchmarks.poison.federation import gradients, train
from simulations.benchmarks.poison.head_features import BIAS, WEIGHT, head_features, pooled

HEAD = {"prefix.length": 0, "client.local_steps": 1, "client.learning_rate": 1.0}


@pytest.fixture(scope="module")
def data() -> dict[str, torch.Tensor]:
    """Two classes that a head tells apart, at eight silos and the server."""
    rng = torch.Generator().manual_seed(1)
    found = {}
    for name in ["", *(f".s{i}" for i in range(8))]:
        y = torch.randint(0, 2, (60,), generator=rng)
        x = torch.randn(60, 5, generator=rng) + (2 * y[:, None] - 1)
        found |= {f"x{name}": x, f"y{name}": y}
    return found


@pytest.fixture(scope="module")
def experiment(tiny_settings: Callable[..., Any]) -> Settings:
    changes = {"client.batch_size": 30, "server.rounds": 6, "server.learning_rate": 0.3}
    found: Settings = tiny_settings(**HEAD | changes)
    return found


def test_gradients_on_features_are_those_of_the_model(
    tiny_settings: Callable[..., Any], word_records: Any
) -> None:
    settings = tiny_settings(**HEAD)
    tunable = make_tunable(settings)
    examples = tunable.task.features(word_records(9, 2))
    rng = torch.Generator().manual_seed(3)
    params = {BIAS: torch.randn(2, generator=rng), WEIGHT: torch.randn(2, 16, generator=rng)}
    expected = clipped_gradient_sum(
        tunable,
        params,
        examples,
        clip_norm=0.5,
        scales=dict.fromkeys(params, 1.0),
        max_tokens=4096,
    ).sums
    x = pooled(tunable, settings, examples)
    rows = gradients(params, x, torch.tensor([int(e.target) for e in examples]))  # type: ignore[arg-type]
    found = clip_and_sum([rows[BIAS], rows[WEIGHT]], 0.5).sums
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [0, 3])
def test_a_head_on_the_features_answers_as_the_model_does(
    length: int,
    tiny_settings: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path))
    settings = tiny_settings(**{"prefix.length": length, "prefix.init_std": 0.5})
    data = head_features(settings)
    again = head_features(settings)  # from the cache
    assert all(torch.equal(data[name], again[name]) for name in data)
    silo = load_federation(settings).silos[0]
    tunable = shared_tunable(settings)
    batch = tunable.task.collate(tunable.task.features(silo.train.records)[:5])
    rng = torch.Generator().manual_seed(3)
    params = initial_params(tunable, settings)
    for name in (WEIGHT, BIAS):
        params[name] = torch.randn(params[name].shape, generator=rng)
    with tunable.adapted(expand_params(params, 1)):
        expected = tunable.task.logits(expand_params(params, 1), batch)[:5]  # type: ignore[attr-defined]
    found = data[f"x.{silo.name}"][:5] @ params[WEIGHT].T + params[BIAS]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_largest_class_is_a_score_of_its_own() -> None:
    assert largest_share(torch.tensor([2, 0, 2, 1, 2])) == pytest.approx(0.6)


def test_hostile_silos_send_what_they_are_called() -> None:
    honest = Contribution("s", {"head": torch.tensor([[3.0, 0.0], [0.0, 4.0]])}, None)
    lengths = {}
    for attack in ATTACKS:
        sent = Hostile(attack, 10.0).sends(honest, 7.0).update["head"]
        lengths[attack] = float(sent.norm())
    assert lengths["sign flip"] == lengths["label flip"] == pytest.approx(5.0)
    assert lengths["scaled by -20"] == pytest.approx(100.0)
    assert lengths["constant direction"] == pytest.approx(5.0)
    assert lengths["constant direction, at the limit"] == pytest.approx(6.993)
    assert lengths[LOUD] == pytest.approx(6.993)
    assert Hostile(LOUD, 10.0).claimed(1.0) == pytest.approx(9.8)
    assert flipped(torch.tensor([0, 1, 2]), 3).tolist() == [2, 1, 0]


def test_the_law_keeps_honest_silos_and_refuses_the_long_updates(
    data: dict[str, torch.Tensor], experiment: Settings
) -> None:
    noise = {f"s{i}": 0.8 for i in range(8)}
    honest = train(data, experiment, noise, {}, law=True, seed=1)
    assert honest.accuracy > 0.8
    assert honest.honest_refused == 0
    bad = {"s3": Hostile("scaled by -20", 1.0)}
    held = train(data, experiment, noise, bad, law=True, seed=1)
    assert held.hostile_refused >= 2  # later, in so few dimensions, 20 small gradients pass for one
    assert held.honest_refused == 0
    assert held.accuracy > 0.8
    free = train(data, experiment, noise, bad, law=False, seed=1)
    assert free.accuracy < 0.5
    assert not math.isnan(free.accuracy)
