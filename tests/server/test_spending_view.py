"""The epsilon that is shown while a run goes on is the one that the silo's ledger gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedllm.budget.account import SiloAccount
from privacy.ledger.ledger import Ledger
from server.spending import MOST_MECHANISMS, SpendingView

CASES = {
    "local steps, private evaluation": {
        "client.local_steps": 3,
        "evaluation.clients": "private",
        "evaluation.clients_holdout": 0.2,
        "evaluation.every": 2,
        "server.rounds": 4,
    },
    "raw evaluation": {"evaluation.clients": "raw", "evaluation.clients_holdout": 0.2},
    "client level": {"privacy.unit": "client"},
    "client level, drawn by a trusted server": {
        "privacy.unit": "client",
        "privacy.noise_by": "server",
        "server.sampling": "poisson",
        "server.fraction": 0.5,
    },
    "no privacy": {"privacy.mode": "none"},
    "perturbed by each example's own gradient": {"awp.form": "per-example"},
    "perturbed by the batch, in two of four rounds": {"awp.form": "batch", "awp.rounds": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_the_view_agrees_with_the_ledger(
    case: str, tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    settings = tiny_settings(**CASES[case] | {"privacy.epsilon": None})
    ledger = Ledger(tmp_path / "ledger.sqlite")
    view = SpendingView(settings)
    for silo, examples in (("alpha", 60), ("beta", 45)):
        account = SiloAccount(
            settings, run="r", party=silo, examples=examples, rounds=4, ledger=ledger
        )
        for server_round in range(1, 5):
            account.spend_training(server_round, f"train/{server_round}")
            view.add_training(
                silo,
                server_round,
                sampling_rate=account.sampling_rate,
                noise_multiplier=account.noise_multiplier,
                steps=settings.client.local_steps,
            )
            if settings.evaluation.clients != "off" and server_round % 2:
                account.spend_evaluation(server_round, f"evaluate/{server_round}")
                view.add_evaluation(silo)
            assert view.epsilon()[silo] == account.epsilon()
    assert SpendingView(settings).epsilon() == {}


def test_a_silo_tells_a_few_mechanisms_in_a_run(tiny_settings: Callable[..., Any]) -> None:
    """More are refused, and what is refused changes nothing; others go on, and so do those it has told."""
    view = SpendingView(tiny_settings())
    for number in range(MOST_MECHANISMS):
        told = {"sampling_rate": 0.1 + number / 1000, "noise_multiplier": 0.8, "steps": 2}
        view.add_training("beta", 1, **told)
    before = copy.deepcopy(view.to_plain())
    with pytest.raises(ValueError, match="more than 64 mechanisms of beta"):
        view.add_training("beta", 1, sampling_rate=0.9, noise_multiplier=0.8, steps=2)
    with pytest.raises(ValueError):
        view.add_training("beta", 1, sampling_rate=2.0, noise_multiplier=0.8, steps=2)
    assert view.to_plain() == before
    view.add_training("beta", 1, sampling_rate=0.1, noise_multiplier=0.8, steps=2)
    view.add_training("gamma", 1, sampling_rate=0.9, noise_multiplier=0.8, steps=2)
    assert set(view.events) == {"beta", "gamma"}
