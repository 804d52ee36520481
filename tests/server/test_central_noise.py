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

from fedllm.budget.round_draws import round_draws
from fedllm.training.client_update import ClientUpdate
from privacy.events.constructors import dp_sgd, gaussian
from privacy.ledger.ledger import Ledger, LedgerError
from server.aggregation import Contribution
from server.extensions import central_noise
from server.extensions.central_noise import CentralRelease

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
def make(tiny_settings: Callable[..., Any], tmp_path: Path) -> Callable[..., CentralRelease]:
    def build(run: str = "r", **changes: Any) -> CentralRelease:
        settings = tiny_settings(**BASE | changes)
        draws = round_draws(settings, NAMES)
        ledger = Ledger(tmp_path / "ledger.sqlite")
        return CentralRelease(settings, run=run, silos=NAMES, draws=draws, ledger=ledger)

    return build


def release(trusted: CentralRelease, server_round: int, given: list[Contribution]) -> Any:
    """A round's release after its draw of the silos."""
    trusted.draws.silos(server_round, PARAMS)
    return trusted.release(server_round, given, PARAMS)


def contributions(count: int, value: float = 0.001) -> list[Contribution]:
    one = {name: torch.full_like(like, value) for name, like in PARAMS.items()}
    return [Contribution(name, one, None) for name in NAMES[:count]]


def flat(tensors: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)]).double().numpy()


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
@pytest.mark.parametrize("answered", [0, 1, 6])
def test_noise_and_divisor_do_not_depend_on_who_answered(
    sampling: str, answered: int, make: Callable[..., CentralRelease]
) -> None:
    trusted = make(**{"server.sampling": sampling})
    samples = []
    for server_round in range(1, 21):
        _, mean, std = release(trusted, server_round, contributions(answered))
        samples.append(flat(mean) - answered * 0.001 / 4)  # 4 silos expected
        assert std == pytest.approx(dict.fromkeys(PARAMS, 1.1 * 0.3 / 4))
    sample = np.concatenate(samples) / (1.1 * 0.3 / 4)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], sample.size) / sample.size
    assert low < (sample**2).mean() < high
    assert abs(sample.mean()) < 5.5 / sample.size**0.5


def test_rows_count_those_whom_the_round_could_have_shown(
    make: Callable[..., CentralRelease],
) -> None:
    fixed = make()
    fixed.release(1, [], PARAMS)
    ledger = fixed.accounts["s0"].ledger
    assert sorted(e.party for e in ledger.entries()) == fixed.draws.rows[0]
    assert ledger.spent("outsider", party=fixed.draws.rows[0][0]) == Counter({gaussian(1.1): 1})


def test_poisson_counts_everybody_every_round(make: Callable[..., CentralRelease]) -> None:
    poisson = make(**{"server.sampling": "poisson"})
    release(poisson, 1, contributions(2))
    ledger = poisson.accounts["s0"].ledger
    assert sorted(e.party for e in ledger.entries()) == NAMES
    assert ledger.spent("outsider", party="s7") == Counter({dp_sgd(0.5, 1.1, 1): 1})


def test_no_noise_is_drawn_without_a_row(
    make: Callable[..., CentralRelease], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = make()

    def refuse(*args: Any, **kwargs: Any) -> bool:
        raise LedgerError("disk full")

    def reached(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("noise was drawn without a row")

    monkeypatch.setattr(Ledger, "extend", refuse)
    monkeypatch.setattr(ClientUpdate, "add_noise", reached)
    with pytest.raises(LedgerError):
        trusted.release(1, contributions(2), PARAMS)


def test_seeded_noise_is_tied_to_the_sum_and_to_the_round(
    make: Callable[..., CentralRelease],
) -> None:
    """A repeated round with other replies must not show the difference of two sums bare."""
    trusted = make()
    ledger = trusted.accounts["s0"].ledger
    first = flat(trusted.release(1, contributions(3), PARAMS)[1])
    count = len(ledger.entries())
    again = flat(trusted.release(1, contributions(3), PARAMS)[1])
    assert np.array_equal(first, again)
    assert len(ledger.entries()) == count
    other = flat(trusted.release(1, contributions(2), PARAMS)[1])
    assert len(ledger.entries()) == 2 * count, "another sum is another release"
    assert np.abs(first - other).std() > 0.03, "the noises cancel"
    later = flat(trusted.release(2, contributions(3), PARAMS)[1])
    assert np.abs(first - later).std() > 0.03


def test_seeded_noise_of_another_size_is_other_noise(make: Callable[..., CentralRelease]) -> None:
    """The same z at two scales would show the sum: a longer history beside equal settings."""
    trusted = make()
    first, scale = flat(trusted.release(1, contributions(3), PARAMS)[1]), trusted.noise_multiplier
    trusted.noise_multiplier = 2 * scale
    second = flat(trusted.release(1, contributions(3), PARAMS)[1])
    assert np.std(2 * first - second) > 1.5 * np.std(first), "the noises cancel"


def test_fresh_noise_is_another_release_and_no_hash_of_updates_is_recorded(
    make: Callable[..., CentralRelease],
) -> None:
    trusted = make(**{"privacy.randomness": "os"})
    ledger = trusted.accounts["s0"].ledger
    first = flat(trusted.release(1, contributions(3), PARAMS)[1])
    again = flat(trusted.release(1, contributions(1), PARAMS)[1])
    assert not np.array_equal(first, again)
    keys = [e.key.split("/") for e in ledger.entries()]
    assert len({key[-1] for key in keys}) == 2
    assert len({key[2] for key in keys}) == 1


def test_budget_refuses_before_the_release(make: Callable[..., CentralRelease]) -> None:
    trusted = make(**{"privacy.epsilon": 6.0, "server.fraction": 1.0})
    done = 0
    while trusted.release(done + 1, contributions(8), PARAMS)[0] == NAMES:
        done += 1
    assert 1 <= done < 30
    assert trusted.release(done + 2, contributions(8), PARAMS) == ([], None, None)
    assert sorted(trusted.left) == NAMES
    account = trusted.accounts["s7"]
    assert account.spent() == Counter({gaussian(1.1): done})
    assert account.epsilon() <= 6.0


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_silo_without_budget_leaves_and_its_update_is_left_out(
    sampling: str, make: Callable[..., CentralRelease]
) -> None:
    """Another run has spent what s1 had: the others go on, and what s1 sends reaches no sum."""
    changes = {"server.sampling": sampling, "server.fraction": 1.0 - 0.1 * (sampling == "poisson")}
    earlier = make(**changes)
    for server_round in range(1, 6):
        earlier.accounts["s1"].spend_training(server_round, f"train/{server_round}")
    bounded = changes | {"privacy.epsilon": 7.0}
    trusted = make("later", **bounded)
    big = Contribution("s1", {n: torch.full_like(v, 1e6) for n, v in PARAMS.items()}, None)
    sent = [c for c in contributions(8) if c.silo != "s1"] + [big]
    kept = [name for name in NAMES if name != "s1"]
    for server_round in (1, 2):
        counted, mean, _ = release(trusted, server_round, sent)
        assert counted == kept
        assert mean is not None
        assert np.abs(flat(mean)).max() < 10
    assert list(trusted.left) == ["s1"]
    assert trusted.left["s1"].startswith("privacy.epsilon (all runs on the ledger)")
    ledger = trusted.accounts["s0"].ledger
    rows = Counter(e.party for e in ledger.entries(run="later"))
    assert rows == dict.fromkeys(kept, 2)


def test_repeated_last_round_of_a_seeded_run_is_admitted_again(
    make: Callable[..., CentralRelease],
) -> None:
    """After a crash between the row and the checkpoint, the round that used the budget up is the
    same release: the same noise, no new row, nobody leaves."""
    changes = {"privacy.noise_multiplier": None, "privacy.epsilon": 5.0, "server.rounds": 3}
    trusted = make(**changes, **{"server.fraction": 1.0})
    for server_round in (1, 2, 3):
        last = trusted.release(server_round, contributions(8), PARAMS)
    again = make(**changes, **{"server.fraction": 1.0})
    repeated = again.release(3, contributions(8), PARAMS)
    assert repeated[0] == last[0] == NAMES
    assert np.array_equal(flat(repeated[1]), flat(last[1]))
    assert len(again.accounts["s0"].ledger.entries()) == 24
    assert again.release(3, contributions(7), PARAMS) == ([], None, None)


def test_one_noise_serves_the_silo_with_the_longest_history(
    make: Callable[..., CentralRelease], tmp_path: Path
) -> None:
    changes = {"privacy.noise_multiplier": None, "privacy.epsilon": 5.0, "server.rounds": 4}
    fresh = make(**changes).noise_multiplier
    other = make("earlier", **{"privacy.noise_multiplier": 8.0, "server.rounds": 4})
    other.accounts["s3"].spend_training(1, "train/1")
    trusted = make(**changes)
    assert trusted.noise_multiplier > fresh * 1.001
    assert {a.noise_multiplier for a in trusted.accounts.values()} == {trusted.noise_multiplier}


STATISTICS = {
    "codec.name": "linear",
    "codec.prior": "coordinate",
    "codec.prior_source": "private",
    "codec.statistics_noise": 2.5,
}


def unit_rows(count: int, length: float = 1.0) -> dict[str, Tensor]:
    """A statistic of 1,200 numbers for each of ``count`` silos, all the same."""
    return {name: torch.full((1200,), length / 1200**0.5).double() for name in NAMES[:count]}


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
@pytest.mark.parametrize(("answered", "length"), [(0, 1.0), (3, 1.0), (8, 1e5)])
def test_noise_on_statistics_is_for_one_silo_whatever_they_send(
    sampling: str, answered: int, length: float, make: Callable[..., CentralRelease]
) -> None:
    """Sum of vectors that were clipped to norm 1, plus noise of statistics_noise, over eight silos."""
    signal = answered / 1200**0.5
    sample = []
    for run in range(12):  # a run plans its statistics once
        trusted = make(f"run-{run}", **STATISTICS | {"server.sampling": sampling})
        params = PARAMS | {"head.bias": torch.full((50,), float(run))}
        counted, mean = trusted.release_statistics(unit_rows(answered, length), 1200, params)
        assert mean is not None
        assert counted == NAMES
        sample.append((8 * mean.numpy() - signal) / 2.5)
    flattened = np.concatenate(sample)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], flattened.size) / flattened.size
    assert low < (flattened**2).mean() < high
    assert abs(flattened.mean()) < 5.5 / flattened.size**0.5
    spent = trusted.accounts["s7"].ledger.spent("outsider", party="s7")
    assert spent == Counter({gaussian(2.5): 12})  # everybody is asked: no amplification


def test_statistics_have_their_row_before_their_noise(
    make: Callable[..., CentralRelease], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = make(**STATISTICS)

    def refuse(*args: Any, **kwargs: Any) -> bool:
        raise LedgerError("disk full")

    def reached(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("noise was drawn without a row")

    monkeypatch.setattr(Ledger, "extend", refuse)
    monkeypatch.setattr(central_noise, "add_gaussian", reached)
    with pytest.raises(LedgerError):
        trusted.release_statistics(unit_rows(8), 1200, PARAMS)


def test_statistics_are_in_the_calibration_and_leave_out_whom_the_budget_refuses(
    make: Callable[..., CentralRelease],
) -> None:
    target = {"privacy.noise_multiplier": None, "privacy.epsilon": 5.0, "server.rounds": 3}
    plain = make(**target).noise_multiplier
    trusted = make(**STATISTICS | target)
    assert trusted.noise_multiplier > 1.001 * plain
    other = make("earlier", **{"server.rounds": 3, "privacy.noise_multiplier": 0.5})
    other.accounts["s2"].spend_training(1, "train/1")
    counted, mean = trusted.release_statistics(unit_rows(8), 1200, PARAMS)
    assert mean is not None
    assert counted == [name for name in NAMES if name != "s2"]
    assert list(trusted.left) == ["s2"]
    for server_round in (1, 2, 3):
        assert trusted.release(server_round, contributions(8), PARAMS)[1] is not None
    assert trusted.accounts["s0"].epsilon() <= 5.0


def test_seeded_noise_on_statistics_is_tied_to_their_sum(
    make: Callable[..., CentralRelease],
) -> None:
    trusted, second = make(**STATISTICS), make("another run", **STATISTICS)
    first, again, other = (
        noise.release_statistics(unit_rows(count), 1200, PARAMS)[1]
        for noise, count in ((trusted, 4), (trusted, 4), (second, 5))
    )
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first, again)
    assert len(trusted.accounts["s0"].ledger.entries(party="s0")) == 2
    assert float((first - other).std()) > 0.1, "the noises cancel"
