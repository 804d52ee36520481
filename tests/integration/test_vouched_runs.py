"""A federation of silos with node keys: the report stands on their signed extracts, and says who does not vouch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from vouching import write_keys, write_silos

import client.extract
from fedllm import messages as names
from fedllm.report.extract.check import Trusted
from fedllm.report.signature import (
    generate_key,
    load_private_key,
    load_public_key,
    sign_report,
    verify_report,
)
from fedllm.run.folder import RunFolder
from privacy.ledger.ledger import Ledger
from server import extracts
from server.deployment.certificates import make_node_key
from simulations.in_process import FIRST_NODE

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
OS = {"privacy.randomness": "os"}


@pytest.fixture(autouse=True)
def no_other_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDLLM_SILO", raising=False)


def test_the_report_is_guaranteed_signed_and_verified(
    start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    """One silo keeps its events, the others send them."""
    run = start_run("deployed", **OS)
    files = write_silos(run, tmp_path / "silos", beta={"extract": "epsilon"})
    keys, memory = write_keys(files), tmp_path / "memory"
    assert in_process(run, silo_files=files, node_keys=keys, memory=memory) == "finished"
    report = json.loads((run.path / "report.json").read_text())
    assert report["guarantee"]["level"] == "guaranteed", report["headline"]
    assert report["problems"] == []
    rows = {row["silo"]: row for row in report["vouching"]}
    assert {name: row["events"] for name, row in rows.items()} == {
        "alpha": "sent", "beta": "kept", "delta": "sent", "gamma": "sent"
    }  # fmt: skip
    for file in files:
        with Ledger(file.parent / "ledger.sqlite", read_only=True) as ledger:
            row = rows[file.parent.name]
            assert (row["rows"], row["hash"]) == ledger.head()
            assert (row["rows_of_run"], row["final"], row["disagreements"]) == (3, True, [])
    officer, _ = generate_key(tmp_path / "officer.pem")
    trusted = Trusted({name: [key] for name, key in keys.items()})
    sign_report(run.path, load_private_key(tmp_path / "officer.pem"), trusted=trusted)
    found = verify_report(run.path, load_public_key(officer), None, trusted)
    assert found.ok, [check for check in found.checks if not check.ok]


def test_who_does_not_vouch_is_named_and_a_silo_that_dies_leaves_its_last_word(
    start_run: Start, in_process: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run on the same ledgers: alpha dies after round 2, beta sends nothing, gamma signs with another key."""
    first = start_run("first", **OS)
    files = write_silos(first, tmp_path / "silos")
    keys, memory = write_keys(files), tmp_path / "memory"
    assert in_process(first, silo_files=files, node_keys=keys, memory=memory) == "finished"
    by_name = {file.parent.name: file for file in files}
    by_name["beta"].write_text('extract = "none"\n' + by_name["beta"].read_text())
    (by_name["gamma"].parent / "node.pub").unlink()
    make_node_key(by_name["gamma"].parent / "node.key", by_name["gamma"].parent / "node.pub")

    def died(task: Message, reply: Message) -> Message | None:
        asked: Any = task.content[names.CONFIG]
        dead = asked.get(names.ROUND, 0) > 2 or task.metadata.message_type == names.ASK_EXTRACT
        return None if dead and reply.metadata.src_node_id == FIRST_NODE else reply

    monkeypatch.setattr(extracts, "WAIT", 1.0)
    monkeypatch.setattr(client.extract, "SHARE", 0.0)  # rounds here take no longer than an extract
    run = start_run("second", **OS, **{"server.timeout": 3.0, "server.max_failures": 1.0})
    status = in_process(run, died, silo_files=files, node_keys=keys, memory=memory)
    assert status == "finished", run.state()["message"]
    report = json.loads((run.path / "report.json").read_text())
    assert report["guarantee"]["level"] == "some-silos", report["headline"]
    rows = {row["silo"]: row for row in report["vouching"]}
    assert [name for name, row in rows.items() if row["vouches"]] == ["alpha", "delta"]
    assert rows["beta"]["why"] == "it sent no extract of its ledger"
    assert "is not signed with its registered node key" in rows["gamma"]["why"]
    assert (rows["alpha"]["final"], rows["alpha"]["rows_of_run"]) == (False, 2)
    assert rows["alpha"]["rows"] == 4 + 3, "the plan and three rounds, then the plan and two"
    assert rows["delta"]["other_runs"] == 1
    assert any("What alpha vouched for last" in note for note in report["notes"])
    held = report["silos"][0]["adversaries"]["server"]["held"]
    assert held["accountant"] == "filter"
    assert "as the silo states" in held["note"]


def test_a_silo_with_a_ledger_of_its_own_refuses_noise_by_the_server(
    start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    """So what a silo told and its rows, which a report compares, are both in the server's view."""
    run = start_run("central", **OS, **{"privacy.unit": "client", "privacy.noise_by": "server"})
    silos = ("alpha", "beta", "gamma", "delta")
    files = write_silos(
        run, tmp_path / "silos", **{name: {"budget.unit": "client"} for name in silos}
    )
    keys, memory = write_keys(files), tmp_path / "memory"
    assert in_process(run, silo_files=files, node_keys=keys, memory=memory) == "failed"
    for silo in silos:
        why = f"refused by the silo {silo}: Expected privacy.noise_by=client"
        assert why in run.state()["message"]
    assert not any((file.parent / "ledger.sqlite").exists() for file in files)
