"""``silo.toml`` and runs with sums: whom the silo's budget is against, and what is refused before any data are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configured_silo import write_silo

from client.config import load_silo
from client.limits import check_limits
from fedllm.budget.local_policy import LimitRefused

Make = Callable[..., Any]
SUM = {"privacy.noise_by": "sum", "client.local_steps": 1}


def silo(tmp_path: Path, settings: Any, **changes: Any) -> Any:
    return load_silo(write_silo(tmp_path, settings, tmp_path / "absent.jsonl", **changes))


def test_the_budget_is_against_the_server_by_default(tiny_settings: Make, tmp_path: Path) -> None:
    policy = silo(tmp_path, tiny_settings()).local_policy()
    assert policy.bound().budget.adversary == "server"
    check_limits(silo(tmp_path, tiny_settings()), tiny_settings(**SUM))  # asked by its cost later


def test_a_budget_against_sums_with_colluding_silos(tiny_settings: Make, tmp_path: Path) -> None:
    own = silo(tmp_path, tiny_settings(), **{"budget.against": "sum-only", "budget.colluding": 2})
    assert own.local_policy().bound().budget.adversary == "sum-only:2"
    with pytest.raises(LimitRefused, match=r"Expected secure.colluding >= 2 .*, got secure.colluding=1"):  # fmt: skip
        check_limits(own, tiny_settings(**SUM | {"secure.colluding": 1}))
    check_limits(own, tiny_settings(**SUM | {"secure.colluding": 2}))
    check_limits(own, tiny_settings())  # a run without sums counts as against the server


def test_colluding_silos_need_a_budget_against_sums(tiny_settings: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected budget.against=sum-only for budget.colluding"):
        silo(tmp_path, tiny_settings(), **{"budget.colluding": 1})


def test_noise_by_a_server_is_still_refused(tiny_settings: Make, tmp_path: Path) -> None:
    own = silo(tmp_path, tiny_settings(), **{"budget.unit": "client", "budget.against": "sum-only"})
    with pytest.raises(LimitRefused, match=r"Expected privacy\.noise_by=client or sum"):
        check_limits(own, tiny_settings(**{"privacy.unit": "client", "privacy.noise_by": "server"}))
