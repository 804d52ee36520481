"""Noise by the server: its size and divisor, the row before it, never twice the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedllm.schedule import participation
from privacy.budget import BudgetExceeded
from privacy.events import dp_sgd, gaussian
from privacy.ledger import Ledger, LedgerError
from server import trusted_noise
from server.aggregation import Contribution
from server.trusted_noise import TrustedNoise

PARAMS = {"head.bias": torch.zeros(50), "prefix": torch.zeros(30, 20)}
NAMES = [f"s{i}" for i in range(8)]
BASE = {
    "privacy.unit": "client",
    "privacy.noise_by": "server",
    "privacy.clip": 0.3,
    "privacy.noise_multiplier": 1.1,
    "privacy.epsilon": None,
    "server.fraction": 0.5,
    "server.rounds": 30,
}


@pytest.fixture
def make(tiny_settings: Callable[..., Any], tmp_path: Path) -> Callable[..., TrustedNoise]:
    def build(**changes: Any) -> TrustedNoise:
        settings = tiny_settings(**BASE | changes)
        schedule = participation(settings, NAMES)
        ledger = Ledger(tmp_path / "ledger.sqlite")
        return TrustedNoise(settings, run="r", silos=NAMES, schedule=schedule, ledger=ledger)

    return build


def contributions(count: int, value: float = 0.001) -> list[Contribution]:
    one = {name: torch.full_like(like, value) for name, like in PARAMS.items()}
    return [Contribution(name, one, None) for name in NAMES[:count]]


def flat(tensors: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)]).double().numpy()


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
@pytest.mark.parametrize("answered", [0, 1, 6])
def test_noise_and_divisor_do_not_depend_on_who_answered(
    sampling: str, answered: int, make: Callable[..., TrustedNoise]
) -> None:
    trusted = make(**{"server.sampling": sampling})
    samples = []
    for server_round in range(1, 21):
        mean, std = trusted.release(server_round, contributions(answered), PARAMS)
        samples.append(flat(mean) - answered * 0.001 / 4)  # 4 silos expected
        assert std == pytest.approx(dict.fromkeys(PARAMS, 1.1 * 0.3 / 4))
    sample = np.concatenate(samples) / (1.1 * 0.3 / 4)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], sample.size) / sample.size
    assert low < (sample**2).mean() < high
    assert abs(sample.mean()) < 5.5 / sample.size**0.5


def test_rows_count_those_whom_the_round_could_have_shown(
    make: Callable[..., TrustedNoise],
) -> None:
    fixed = make()
    fixed.release(1, [], PARAMS)
    ledger = fixed.accounts["s0"].ledger
    assert sorted(e.party for e in ledger.entries()) == fixed.schedule[0]
    assert ledger.spent("outsider", party=fixed.schedule[0][0]) == Counter({gaussian(1.1): 1})


def test_poisson_counts_everybody_every_round(make: Callable[..., TrustedNoise]) -> None:
    poisson = make(**{"server.sampling": "poisson"})
    poisson.release(1, contributions(2), PARAMS)
    ledger = poisson.accounts["s0"].ledger
    assert sorted(e.party for e in ledger.entries()) == NAMES
    assert ledger.spent("outsider", party="s7") == Counter({dp_sgd(0.5, 1.1, 1): 1})


def test_no_noise_is_drawn_without_a_row(
    make: Callable[..., TrustedNoise], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = make()

    def refuse(*args: Any, **kwargs: Any) -> bool:
        raise LedgerError("disk full")

    def reached(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("noise was drawn without a row")

    monkeypatch.setattr(Ledger, "append", refuse)
    monkeypatch.setattr(trusted_noise, "add_gaussian", reached)
    with pytest.raises(LedgerError):
        trusted.release(1, contributions(2), PARAMS)


def test_seeded_noise_is_tied_to_the_sum_and_to_the_round(
    make: Callable[..., TrustedNoise],
) -> None:
    """A repeated round with other replies must not show the difference of two sums bare."""
    trusted = make()
    ledger = trusted.accounts["s0"].ledger
    first = flat(trusted.release(1, contributions(3), PARAMS)[0])
    count = len(ledger.entries())
    again = flat(trusted.release(1, contributions(3), PARAMS)[0])
    assert np.array_equal(first, again)
    assert len(ledger.entries()) == count
    other = flat(trusted.release(1, contributions(2), PARAMS)[0])
    assert len(ledger.entries()) == 2 * count, "another sum is another release"
    assert np.abs(first - other).std() > 0.03, "the noises cancel"
    later = flat(trusted.release(2, contributions(3), PARAMS)[0])
    assert np.abs(first - later).std() > 0.03


def test_fresh_noise_is_another_release_and_no_hash_of_updates_is_recorded(
    make: Callable[..., TrustedNoise],
) -> None:
    trusted = make(**{"privacy.randomness": "os"})
    ledger = trusted.accounts["s0"].ledger
    first = flat(trusted.release(1, contributions(3), PARAMS)[0])
    again = flat(trusted.release(1, contributions(1), PARAMS)[0])
    assert not np.array_equal(first, again)
    keys = [e.key.split("/") for e in ledger.entries()]
    assert len({key[-1] for key in keys}) == 2
    assert len({key[2] for key in keys}) == 1


def test_budget_refuses_before_the_release(make: Callable[..., TrustedNoise]) -> None:
    trusted = make(**{"privacy.epsilon": 6.0, "server.fraction": 1.0})
    done = 0
    try:
        for server_round in range(1, 31):
            trusted.release(server_round, contributions(8), PARAMS)
            done += 1
    except BudgetExceeded:
        pass
    assert 1 <= done < 30
    account = trusted.accounts["s7"]
    assert account.spent() == Counter({gaussian(1.1): done})
    assert account.epsilon() <= 6.0


def test_one_noise_serves_the_silo_with_the_longest_history(
    make: Callable[..., TrustedNoise], tmp_path: Path
) -> None:
    changes = {"privacy.noise_multiplier": None, "privacy.epsilon": 5.0, "server.rounds": 4}
    fresh = make(**changes).noise_multiplier
    other = make(**{"privacy.noise_multiplier": 8.0, "server.rounds": 4})
    other.accounts["s3"].run = "earlier"
    other.accounts["s3"].spend_training(1, "train/1")
    trusted = make(**changes)
    assert trusted.noise_multiplier > fresh * 1.001
    assert {a.noise_multiplier for a in trusted.accounts.values()} == {trusted.noise_multiplier}
