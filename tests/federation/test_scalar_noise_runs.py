"""The noise on the silos' counts: chosen for the plan, the same in silos, ledger and report, and at a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats

from fedllm.report.build import build
from fedllm.run_folder import RunFolder
from fedllm.scalar_release import with_choice, with_scalar_noise
from fedllm.silo_bounds import evaluation_events, evaluation_noise
from fedllm.silo_worker import SiloWorker
from fedllm.silos import load_federation
from fedllm.tunable import initial_params
from privacy.event_json import kind
from privacy.ledger import Ledger
from server.run import SCALARS

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
Make = Callable[..., Any]
PRIVATE = {
    "evaluation.clients": "private",
    "evaluation.clients_holdout": 0.3,
    "evaluation.every": 1,
    "privacy.accountant": "pld",
}
SIZES = {"alpha": 60, "beta": 45}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path_factory.getbasetemp() / "scalar-choices"))


def test_a_family_by_hand_is_in_every_silos_rows_and_kept_at_a_resume(
    start_run: Start, in_process: Federate
) -> None:
    run = start_run("run", **PRIVATE, **{"evaluation.clients_family": "laplace"})
    assert in_process(run) == "finished"
    told = json.loads((run.path / SCALARS).read_text())
    assert told["family"] == "laplace"
    settings = with_choice(run.settings(), told)
    (expected,) = evaluation_events(settings)
    with Ledger(run.ledger_path, read_only=True) as ledger:
        rows = [e for e in ledger.entries() if e.purpose == "evaluate"]
        assert {row.party for row in rows} == set(ledger.parties())
        for row in rows:
            (event,) = {expected} & set(ledger.spent("server", party=row.party))
            assert kind(event) == "ScalarNoise"
    mechanisms = {r["mechanism"] for r in build(run)["releases"] if r["purpose"] == "evaluate"}
    assert mechanisms == {"one number with laplace noise"}
    # What was chosen first holds, whatever would be chosen now.
    told["noise"]["parameters"]["scale"] *= 2
    (run.path / SCALARS).write_text(json.dumps(told))
    assert with_choice(run.settings(), told) != settings


def test_beside_training_the_whole_numbers_stay(start_run: Start, in_process: Federate) -> None:
    run = start_run("run", **PRIVATE)
    assert in_process(run) == "finished"
    told = json.loads((run.path / SCALARS).read_text())
    assert told["family"] == "discrete-gaussian"
    assert set(told["ratios"]) == {"laplace", "exponential-power", "staircase"}
    mechanisms = {r["mechanism"] for r in build(run)["releases"] if r["purpose"] == "evaluate"}
    assert all("discrete Gaussian" in mechanism for mechanism in mechanisms)


def test_what_is_asked_for_and_what_is_not(tiny_settings: Make) -> None:
    off = tiny_settings(**PRIVATE | {"evaluation.clients": "off"})
    assert with_scalar_noise(off, SIZES) == (off, None)
    rdp = PRIVATE | {"privacy.accountant": "rdp"}
    assert with_scalar_noise(tiny_settings(**rdp), SIZES)[1] is None
    with pytest.raises(ValueError, match=r"Expected privacy.accountant=pld for evaluation.clients"):
        with_scalar_noise(tiny_settings(**rdp, **{"evaluation.clients_family": "staircase"}), SIZES)


def test_the_counts_carry_the_noise_of_their_events(tiny_settings: Make, tmp_path: Any) -> None:
    settings = tiny_settings(**PRIVATE, **{"evaluation.clients_family": "laplace"})
    settings, _ = with_scalar_noise(settings, SIZES)
    noise = evaluation_noise(settings)
    assert noise is not None
    silo = load_federation(settings).silos[0]
    worker = SiloWorker(settings, silo, run="r", ledger=tmp_path / "ledger.sqlite")
    params = initial_params(worker.tunable, settings)
    metrics = worker.tunable.evaluate(params, worker.held_out_features, 4096)
    size = len(worker.held_out_features)
    exact = (round(metrics["accuracy"] * size), size)
    worker.account(400).bounds = ()  # so that 200 evaluations are let through
    sample = []
    for server_round in range(1, 201):
        found = worker.evaluate(params, server_round, 400)
        sample += [value - true for value, true in zip(found, exact, strict=True)]
    assert scipy.stats.kstest(sample, lambda x: 1 - noise.survival(x)).pvalue > 1e-6
