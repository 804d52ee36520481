"""A federation of silos with files, ledgers and limits of their own, and the real server logic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from configured_silo import write_silo

from fedllm.data.silos import load_federation
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from privacy.ledger.ledger import Ledger

Start = Callable[..., RunFolder]
Federate = Callable[..., str]


@pytest.fixture(autouse=True)
def no_other_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDLLM_SILO", raising=False)


def write_silos(run: RunFolder, folder: Path, **changes: dict[str, Any]) -> list[Path]:
    """A folder with data and file for each silo of the settings; ``changes`` by silo."""
    paths = []
    for silo in load_federation(run.settings()).silos:
        place = folder / silo.name
        place.mkdir(parents=True)
        rows = "".join(json.dumps(row) + "\n" for row in silo.train)
        (place / "records.jsonl").write_text(rows, encoding="utf-8")
        own = changes.get(silo.name, {})
        named = {"name": silo.name, **own}
        paths.append(write_silo(place, run.settings(), place / "records.jsonl", **named))
    return paths


def params_of(run: RunFolder) -> dict[str, torch.Tensor]:
    found = latest_checkpoint(run.checkpoints_path)
    assert found is not None
    return dict(found.params)


def test_silos_of_their_own_train_the_same_model(
    start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    """The same seeded experiment as a simulation: the same final parameters, bit by bit."""
    simulated, deployed = start_run("simulated"), start_run("deployed")
    files = write_silos(deployed, tmp_path / "silos")
    assert in_process(simulated) == "finished"
    assert in_process(deployed, silo_files=files) == "finished"
    first, second = params_of(simulated), params_of(deployed)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert Ledger(deployed.ledger_path).entries() == []  # the server holds no silo's ledger
    for path in files:
        with Ledger(path.parent / "ledger.sqlite", read_only=True) as ledger:
            assert [row.round for row in ledger.entries()] == [1, 2, 3]


def test_the_run_goes_on_without_a_silo_that_refuses(
    start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    run = start_run("refused")
    changes = {"beta": {"limits.local_steps": 1}, "gamma": {"limits.noise_multiplier": 9.0}}
    files = write_silos(run, tmp_path / "silos", **changes)
    records: list[dict[str, Any]] = []

    class Watch:
        def record(self, record: dict[str, Any]) -> None:
            records.append(record)

        def close(self) -> None:
            pass

    assert in_process(run, silo_files=files, callbacks=[Watch()]) == "finished"
    assert run.read_json("schedule.json")["silos"] == ["alpha", "delta"]
    said = [record["message"] for record in records if record["kind"] == "warning"]
    (beta,) = (text for text in said if "silo beta" in text)
    assert "Expected client.local_steps <= 1 (limits.local_steps), got 2" in beta
    (gamma,) = (text for text in said if "silo gamma" in text)
    assert "Expected privacy.noise_multiplier >= 9" in gamma
    assert not list((tmp_path / "silos" / "beta").glob("ledger*"))


def test_a_silo_whose_mechanism_is_refused_leaves_in_the_round(
    start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    run = start_run("left")
    files = write_silos(run, tmp_path / "silos", beta={"limits.sampling_rate": 0.1})
    assert in_process(run, silo_files=files) == "finished"
    rounds = [record for record in run.metrics() if record["kind"] == "round"]
    ((item,), *rest) = (record["left"] for record in rounds)
    assert item["silo"] == "beta"
    assert "Expected a sampling rate <= 0.1" in item["reason"]
    assert rest == [[], []]
    assert [record["replied"] for record in rounds] == [3, 3, 3]
    with Ledger(tmp_path / "silos" / "beta" / "ledger.sqlite", read_only=True) as ledger:
        assert ledger.entries() == []
