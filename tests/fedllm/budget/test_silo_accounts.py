"""Many silos' rounds in one transaction: the same rows and refusals as one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedllm.budget.account import SiloAccount
from fedllm.budget.accounts import spend_together
from privacy.events.constructors import gaussian
from privacy.ledger.ledger import Ledger, LedgerEntry

Make = Callable[..., Any]
NAMES = [f"s{i}" for i in range(6)]
CHANGES = {
    "privacy.unit": "client",
    "privacy.noise_multiplier": 1.1,
    "privacy.epsilon": 8.0,
    "privacy.accountant": "pld",
}


@pytest.fixture
def ledgers(tmp_path: Path) -> Iterator[tuple[Ledger, Ledger]]:
    with Ledger(tmp_path / "one.sqlite") as one, Ledger(tmp_path / "two.sqlite") as two:
        for ledger in (one, two):  # s2 has a history of its own
            views = {"server": gaussian(1.0), "outsider": gaussian(1.0)}
            ledger.append(LedgerEntry("earlier", "s2", "client", "train", 1, "train/1", views))
        yield one, two


def accounts(settings: Any, ledger: Ledger) -> list[SiloAccount]:
    options = {"examples": 60, "rounds": 20, "ledger": ledger}
    return [SiloAccount(settings, run="run", party=name, **options) for name in NAMES]


def rows(ledger: Ledger) -> list[LedgerEntry]:
    return sorted(ledger.entries(), key=lambda e: (e.party, e.run, e.round))


def test_together_is_one_by_one(tiny_settings: Make, ledgers: tuple[Ledger, Ledger]) -> None:
    settings = tiny_settings(**CHANGES)
    together, alone = (accounts(settings, ledger) for ledger in ledgers)
    left: dict[str, int] = {}
    for server_round in range(1, 20):
        key = f"train/{server_round}"
        before = len(ledgers[0].entries())
        refused = spend_together(together, server_round, key)
        if refused:
            assert len(ledgers[0].entries()) == before, "all rows or none"
            for account, error in refused.items():
                left[account.party] = server_round
                assert error.epsilon > error.target == 8.0
                one = next(a for a in alone if a.party == account.party)
                with pytest.raises(type(error), match="epsilon"):
                    one.spend_training(server_round, key)
                alone.remove(one)
            together = [account for account in together if account not in refused]
            assert spend_together(together, server_round, key) == {}
        for account in alone:
            assert account.spend_training(server_round, key)
        assert rows(ledgers[0]) == rows(ledgers[1])
    assert sorted(left) == NAMES
    assert left["s2"] < left["s0"] == left["s5"]
    assert ledgers[0].verify().ok
    assert spend_together([], 1, "train/1") == {}


def test_the_same_release_again_is_neither_asked_nor_recorded(
    tiny_settings: Make, ledgers: tuple[Ledger, Ledger]
) -> None:
    settings, ledger = tiny_settings(**CHANGES), ledgers[0]
    silos = accounts(settings, ledger)
    last = 0
    while not spend_together(silos, last + 1, f"train/{last + 1}"):
        last += 1
    count = len(ledger.entries())
    assert spend_together(silos, last, f"train/{last}") == {}
    assert len(ledger.entries()) == count


def test_equal_histories_are_asked_once(
    tiny_settings: Make, ledgers: tuple[Ledger, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    silos = accounts(tiny_settings(**CHANGES), ledgers[0])
    asked = []
    real = SiloAccount.admit_training
    monkeypatch.setattr(
        SiloAccount,
        "admit_training",
        lambda self, *given: asked.append(self.party) or real(self, *given),
    )
    assert spend_together(silos, 1, "train/1") == {}
    assert asked == ["s0", "s2"]
    silos[3].noise_multiplier = 1.2  # another mechanism
    assert spend_together(silos, 2, "train/2") == {}
    assert asked == ["s0", "s2", "s0", "s2", "s3"]
    assert ledgers[0].spent("server", party="s3") == {gaussian(1.1): 1, gaussian(1.2): 1}
