"""The server's part of secure sums where no run is needed: who is left out, and how a run ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedllm.run.folder import RunFolder
from fedllm.secure.member import Member
from server.extensions.secure_sum import SecureSums
from server.replies import RunStopped
from server.replies.sums import Introduced
from server.run_state import BudgetSpent

SUM = {"privacy.noise_by": "sum", "client.local_steps": 1, "secure.drop_outs": 1}
NOISES = {"a": 0.8, "b": 1.2, "c": 1.1, "d": 1.0}


@pytest.fixture
def made(tiny_settings: Callable[..., Any], tmp_path: Path) -> Callable[..., SecureSums]:
    """``made(**noises)``: the extension in a run with silos that ask for these noise multipliers."""

    def make(**noises: float) -> SecureSums:
        settings = tiny_settings(**SUM)
        folder = RunFolder.create(settings, tmp_path / "run")
        found = SecureSums(folder, None)
        run: Any = SimpleNamespace(
            settings=settings, left={}, nodes=dict.fromkeys(noises, 1), trainable={}, run_id="run"
        )
        found.run = run
        return found

    return make


def introduced(folder: Path, noises: dict[str, float]) -> dict[str, Introduced]:
    return {
        name: Introduced(Member(name, "run", folder).introduce(), noise, False)
        for name, noise in noises.items()
    }


def test_all_have_the_largest_noise_and_a_loud_silo_is_left_out(
    made: Callable[..., SecureSums], tmp_path: Path
) -> None:
    asked = NOISES | {"loud": 40.0}
    extension = made(**asked)
    extension.run.trainable["head"] = torch.zeros(3, 4)  # type: ignore[index]
    roster = extension._make(introduced(tmp_path, asked))
    assert roster.names == ("a", "b", "c", "d")
    assert (roster.noise_multiplier, roster.dimension, roster.drop_outs) == (1.2, 12, 1)
    assert "server.max_noise_ratio=10" in extension.run.left["loud"]


def test_a_run_is_over_where_too_many_left_and_stops_where_too_many_are_away(
    made: Callable[..., SecureSums], tmp_path: Path
) -> None:
    extension = made(**NOISES)
    extension.run.trainable["head"] = torch.zeros(2)  # type: ignore[index]
    extension._roster = extension._make(introduced(tmp_path, NOISES))
    run = extension.run
    run.left["a"] = "its budget is spent"
    del run.nodes["b"]
    with pytest.raises(
        RunStopped, match="a: its budget is spent; b: its node is not there"
    ) as away:
        extension.before_round(None)  # type: ignore[arg-type]
    assert not isinstance(away.value, BudgetSpent), "b may come back: the run can be resumed"
    run.left["b"] = "its budget is spent too"
    with pytest.raises(BudgetSpent, match="2 of the 4 silos"):
        extension.before_round(None)  # type: ignore[arg-type]
    assert extension.session == 0, "no session is begun for a round that cannot be"
