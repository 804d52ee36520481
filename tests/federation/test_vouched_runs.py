"""A federation of silos with node keys: the report stands on their signed extracts, and says who does not vouch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from vouching import write_keys, write_silos

from fedllm.report import build
from fedllm.run_folder import RunFolder

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
OS = {"privacy.randomness": "os"}


@pytest.fixture(autouse=True)
def no_other_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDLLM_SILO", raising=False)


def test_the_report_is_guaranteed_signed_and_verified(
    start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    run = start_run("deployed", **OS)
    files = write_silos(run, tmp_path / "silos", beta={"extract": "epsilon"})
    keys = write_keys(files)
    assert (
        in_process(run, silo_files=files, node_keys=keys, memory=tmp_path / "memory") == "finished"
    )
    report = build(run)
    assert report["guarantee"]["level"] == "guaranteed", report["headline"]
    print(report["headline"])
    print(json.dumps(report["vouching"], indent=1))
    assert report["problems"] == []
