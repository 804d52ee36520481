"""At client level a silo's own sampling of examples buys nothing: the whole silo is the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedllm.budget.account import SiloAccount
from privacy.events.constructors import dp_sgd, gaussian
from privacy.ledger.ledger import Ledger


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("by", ["client", "server"])
def test_batches_of_examples_do_not_amplify_a_clients_round(
    by: str, steps: int, tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """One event a round, whatever the batch and the number of steps within the silo."""
    settings = tiny_settings(
        **{
            "privacy.unit": "client",
            "privacy.noise_by": by,
            "privacy.epsilon": None,
            "client.local_steps": steps,
            "client.batch_size": 8,
        }
    )
    ledger = Ledger(tmp_path / "ledger.sqlite")
    one = SiloAccount(settings, run="r", party="a", examples=100, rounds=3, ledger=ledger)
    assert one.sampling_rate == pytest.approx(0.08), "else there is nothing to amplify with"
    for server_round in (1, 2, 3):
        one.spend_training(server_round, f"train/{server_round}")
    assert ledger.spent("outsider") == Counter({gaussian(0.8): 3})
    if by == "client":
        assert ledger.spent("server") == Counter({gaussian(0.8): 3})
    assert one.planned() == Counter({gaussian(0.8): 3})


def test_an_examples_round_is_all_its_sampled_steps(
    tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    settings = tiny_settings(**{"privacy.epsilon": None, "client.local_steps": 5})
    ledger = Ledger(tmp_path / "ledger.sqlite")
    one = SiloAccount(settings, run="r", party="a", examples=100, rounds=1, ledger=ledger)
    one.spend_training(1, "train/1")
    assert ledger.spent("server") == Counter({dp_sgd(0.08, 0.8, 1): 5})
