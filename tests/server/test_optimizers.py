"""The server's optimisers against torch's, and their state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from server.global_model import ServerOptimizer, schedule_factor

Make = Callable[..., Any]
START = {"head.bias": torch.tensor([0.5, -1.0]), "prefix": torch.tensor([[1.0, 2.0, 3.0]])}


def updates(count: int) -> list[dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(3)
    return [
        {n: torch.randn(v.shape, generator=rng) for n, v in START.items()} for _ in range(count)
    ]


def walk(optimizer: ServerOptimizer, params: Any, steps: Any, first: int = 1) -> dict[str, Tensor]:
    for server_round, update in enumerate(steps, start=first):
        params = optimizer.step(params, update, None, server_round)
    return params


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_equals_torch(kind: str, tiny_settings: Make) -> None:
    settings = tiny_settings(
        **{
            "server.optimizer": kind,
            "server.rounds": 6,
            "server.schedule": "constant",
            "server.noise_correction": False,
        }
    ).server
    got = walk(ServerOptimizer(settings, START), START, updates(6))
    weights = {name: value.clone() for name, value in START.items()}
    judge: Any
    if kind == "sgd":
        judge = torch.optim.SGD(
            weights.values(), lr=settings.learning_rate, momentum=settings.momentum
        )
    else:
        judge = torch.optim.Adam(
            weights.values(),
            lr=settings.learning_rate,
            betas=(settings.momentum, settings.beta2),
            eps=settings.adam_epsilon,
        )
    for update in updates(6):
        for name, value in weights.items():
            value.grad = -update[name]
        judge.step()
    for name in START:
        torch.testing.assert_close(got[name], weights[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_state_carries_everything(kind: str, tiny_settings: Make) -> None:
    settings = tiny_settings(**{"server.optimizer": kind, "server.rounds": 6}).server
    steps = updates(6)
    noise = {"head.bias": 0.3, "prefix": 0.1}
    whole = ServerOptimizer(settings, START)
    params: dict[str, Tensor] = START
    for server_round, update in enumerate(steps, start=1):
        params = whole.step(params, update, noise, server_round)
        if server_round == 3:
            middle, state = params, {n: v.clone() for n, v in whole.state().items()}
    resumed = ServerOptimizer(settings, START)
    resumed.load_state(state)
    for server_round, update in enumerate(steps[3:], start=4):
        middle = resumed.step(middle, update, noise, server_round)
    assert all(torch.equal(params[n], middle[n]) for n in START)


def test_schedule(tiny_settings: Make) -> None:
    for kind, middle in {"constant": 1.0, "linear": 0.6, "cosine": 0.6}.items():
        settings = tiny_settings(
            **{"server.schedule": kind, "server.rounds": 5, "server.final_rate": 0.2}
        ).server
        assert schedule_factor(settings, 1) == 1.0
        assert schedule_factor(settings, 3) == pytest.approx(middle)
        last = 1.0 if kind == "constant" else 0.2
        assert schedule_factor(settings, 5) == pytest.approx(last)


def test_head_has_a_rate_of_its_own(tiny_settings: Make) -> None:
    settings = tiny_settings(**{"server.head_learning_rate": 0.5}).server
    optimizer = ServerOptimizer(settings, START)
    assert optimizer.rate("head.bias", 1) == 0.5
    assert optimizer.rate("prefix", 1) == 0.05
