"""Mechanisms: the events of a round are those of before, and one from outside the package trains with its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.budget.account import SiloAccount
from fedllm.data.silos import load_federation
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training import mechanism as mechanisms
from fedllm.training.mechanism import Kind, make_mechanism, register_mechanism
from fedllm.training.noise import Noise, RoundCost
from fedllm.training.steps import LocalResult, LocalWork
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.events.constructors import pure_dp
from privacy.events.multiset import is_private, multiset
from privacy.events.serialization import event_to_json
from privacy.ledger.ledger import Ledger
from server.spending import SpendingView
from tests.support.event_grid import GRID, NOISE, RATES, ROUNDS
from tests.support.local_training import training_events

Make = Callable[..., Any]
EVENTS = json.loads((Path(__file__).parents[2] / "support" / "event_grid.json").read_text("utf-8"))


@pytest.mark.parametrize("name", GRID)
def test_events_of_a_round_are_those_of_the_list(name: str, tiny_settings: Make) -> None:
    """The list was written by the code that built events from settings apart from the noise."""
    settings = tiny_settings(**GRID[name])
    view = SpendingView(settings)
    expected_of_view: Counter[DpEvent] = Counter()
    for server_round in ROUNDS:
        for rate in RATES:
            found = training_events(
                settings, server_round, sampling_rate=rate, noise_multiplier=NOISE
            )
            plain = [[event_to_json(event), count] for event, count in found.items()]
            expected = EVENTS[f"{name} | round {server_round} | rate {rate:g}"]
            assert sorted(plain) == sorted(expected)
            view.add_training(
                "alpha",
                server_round,
                sampling_rate=rate,
                noise_multiplier=NOISE,
                steps=settings.client.local_steps,
            )
            expected_of_view.update(multiset(found))
    assert view.events["alpha"] == expected_of_view


@pytest.mark.parametrize("name", GRID)
def test_what_is_calibrated_is_what_a_round_costs(name: str, tiny_settings: Make) -> None:
    """As many sampled mechanisms a round as there are private events, at the same rate."""
    settings = tiny_settings(**GRID[name])
    mechanism = make_mechanism(settings, sampling_rate=0.1, noise_multiplier=NOISE)
    assert mechanism.private == (settings.privacy.mode == "dp")
    if not mechanism.private:
        return
    events = {e: n for e, n in multiset(mechanism.events(1)).items() if is_private(e)}
    cost = mechanism.cost()
    together = settings.clipping.form == "adaptive" and cost.sampling_rate == 1
    assert sum(events.values()) == cost.mechanisms * (2 if together else 1)
    if cost.truncated is None:
        rates = {getattr(event, "sampling_probability", 1.0) for event in events}
        assert rates == {cost.sampling_rate}
    else:
        (event,) = events
        assert (event.dataset_size, event.truncated_batch_size) == cost.truncated


@dataclass(frozen=True)
class Coin:
    """A mechanism that no file of the package knows: the sign of each number, flipped by chance."""

    sampling_rate: float
    noise_multiplier: float
    clip: float = 1.0

    private = True
    adaptive = False

    def at_clip(self, clip: float | None) -> Coin:
        assert clip is None
        return self

    def at_silo(self) -> Coin:
        return self

    def events(self, server_round: int) -> Counter[DpEvent]:
        return multiset({pure_dp(0.25): server_round})

    def cost(self) -> RoundCost:
        return RoundCost(1.0, 1)

    def release_noise(self) -> Noise | None:
        return None

    def noise_std(self, params: Mapping[str, Tensor]) -> dict[str, float] | None:
        return None

    def train(self, work: LocalWork) -> LocalResult:
        rng = work.streams("noise", 0)
        update = {
            name: torch.sign(torch.from_numpy(rng.standard_normal(tuple(value.shape)))).float()
            for name, value in sorted(work.params.items())
        }
        return LocalResult(update, None, len(work.features), 0, 0, 0.0)


@pytest.fixture
def coin() -> Iterator[None]:
    before = list(mechanisms.KINDS)
    register_mechanism(
        Kind("coin", lambda settings: settings.name == "coin", lambda _, q, z: Coin(q, z))
    )
    yield
    mechanisms.KINDS[:] = before


@pytest.mark.usefixtures("coin")
def test_a_mechanism_from_outside_trains_and_its_events_are_in_the_ledger(
    tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(**{"name": "coin", "privacy.accountant": "pld"})
    silo = load_federation(settings).silos[0]
    worker = SiloWorker(settings, silo, run="r", ledger=tmp_path / "ledger.sqlite")
    params = initial_params(shared_tunable(settings), settings)
    for server_round in (1, 2):
        reply = worker.train(SiloTask(params, server_round, 3))
        assert all(set(value.unique().tolist()) <= {-1.0, 1.0} for value in reply.update.values())
        (*_, entry) = worker.ledger.entries(party=silo.name)
        assert multiset(entry.views["server"]) == Counter({pure_dp(0.25): server_round})
    assert make_mechanism(settings, sampling_rate=0.5, noise_multiplier=1.0) == Coin(0.5, 1.0)
    with pytest.raises(ValueError, match="new name"):
        register_mechanism(Kind("coin", lambda _: True, lambda _, q, z: Coin(q, z)))
    other = tiny_settings()
    assert not isinstance(make_mechanism(other, sampling_rate=0.5, noise_multiplier=1.0), Coin)


def test_another_noise_is_another_mechanism_of_the_account(
    tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(**{"privacy.epsilon": None})
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        account = SiloAccount(settings, run="r", party="a", examples=60, rounds=3, ledger=ledger)
        before = account.training_events(1)
        account.noise_multiplier *= 2
        assert account.noise_multiplier == account.mechanism.noise_multiplier
        assert account.training_events(1) != before
