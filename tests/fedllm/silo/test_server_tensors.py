"""A silo refuses tensors of the server that do not fit, before any row is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedllm import messages as names
from fedllm.budget.local_policy import LimitRefused, LocalPolicy
from fedllm.data.silos import load_federation
from fedllm.silo.server_tensors import check_tensors
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.tunable import initial_params, shared_tunable

Make = Callable[..., Any]
START = {"head": torch.zeros(2, 3), "prefix": torch.full((4,), 3.0)}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return START | {name: change(START[name])}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"head": START["head"]}, r"named \['head', 'prefix'\], got \['head'\]"),
        (START | {"more": torch.zeros(1)}, r"got \['head', 'more', 'prefix'\]"),
        (changed("head", lambda t: t.T), r"head of shape \(2, 3\) .* got \(3, 2\)"),
        (changed("head", lambda t: t.long()), "torch.int64"),
        (changed("head", lambda t: t + float("nan")), "head finite and of norm <= 10 .* got nan"),
        (changed("prefix", lambda t: t + float("inf")), "prefix finite .* got inf"),
        (changed("head", lambda t: t + 5), "norm <= 10 .* got 12.2474"),
        (changed("prefix", lambda t: t * 11), "norm <= 60 .* got 66"),
        (changed("prefix", lambda t: t * 1e38), "got 6e[+]38"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(LimitRefused, match=message):
        check_tensors(given, START, 10.0, "parameters")


def test_what_fits_is_not() -> None:
    check_tensors(changed("prefix", lambda t: t * 9.9).copy(), START, 10.0, "parameters")
    check_tensors(changed("head", lambda t: t + 4), START, 10.0, "parameters")


def huge(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value + 1e6 for name, value in params.items()}


@pytest.mark.parametrize(
    "task",
    [
        lambda worker, params: worker.train(SiloTask(params, 1, 2)),
        lambda worker, params: worker.answer(SiloTask(params, 1, 2, kind=names.EVALUATE)),
        lambda worker, params: worker.answer(SiloTask(params, 0, 2, kind=names.ASK_STATISTICS)),
        lambda worker, params: worker.answer(
            SiloTask(params, 1, 2, {names.CANDIDATES: (0, 1)}, names.ASK_SCORES)
        ),
    ],
    ids=["train", "evaluate", "statistics", "scores"],
)
def test_every_task_refuses_before_a_row(
    task: Callable[..., Any], tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(
        **{
            "evaluation.clients": "private",
            "evaluation.clients_holdout": 0.3,
            "codec.name": "linear",
            "codec.prior_source": "private",
            "layers.form": "private",
            "layers.keep": 1,
        }
    )
    params = initial_params(shared_tunable(settings), settings)
    silo = next(s for s in load_federation(settings).silos if s.name == "alpha")
    worker = SiloWorker(settings, silo, run="run", ledger=tmp_path / "ledger.sqlite")
    with pytest.raises(LimitRefused, match=r"client\.parameter_norm"):
        task(worker, huge(params))
    assert worker.ledger.entries(party="alpha") == []
    assert worker._opened is None, "no data were looked at"


def test_a_duplicate_too(tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(**{"teacher.kind": "nonprivate", "privacy.mode": "none"})
    params = initial_params(shared_tunable(settings), settings)
    silo = load_federation(settings).silos[0]
    worker = SiloWorker(settings, silo, run="run", ledger=tmp_path / "ledger.sqlite")
    with pytest.raises(LimitRefused, match="a duplicate"):
        worker.train(SiloTask(params, 1, 2, {"duplicate": huge(params)}))
    assert worker.ledger.entries() == []


def test_the_silos_own_limit_holds(tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(**{"client.parameter_norm": 1e9})
    params = initial_params(shared_tunable(settings), settings)
    silo = load_federation(settings).silos[0]
    options: dict[str, Any] = {"run": "run", "ledger": tmp_path / "ledger.sqlite"}
    SiloWorker(settings, silo, **options).check(huge(params))
    own = LocalPolicy(epsilon=3.0, delta=1e-5, parameter_norm=100.0)
    with pytest.raises(LimitRefused):
        SiloWorker(settings, silo, own=own, **options).check(huge(params))
