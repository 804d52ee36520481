"""``fedllm deploy doctor`` and ``approve``, as commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configured_silo import write_silo
from typer.testing import CliRunner

from client.config import load_silo
from client.executor.approval import read_approved
from fedllm.budget.account import SiloAccount
from fedllm.report.plan_figures import SO_FAR
from privacy.ledger.ledger import Ledger
from server.deployment.folder import NODE, NodeFile, write_toml
from simulations.cli.main import app

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_other_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDLLM_SILO", raising=False)


def call(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["deploy", *words])
    assert done.exit_code == code, done.output
    return done


def findings(*words: str, code: int) -> dict[str, tuple[bool, str]]:
    told = json.loads(call("doctor", "--json", *words, code=code).stdout)
    assert told["ok"] == (code == 0)
    return {item["what"]: (item["good"], item["text"]) for item in told["findings"]}


def test_it_tells_what_is_missing_until_nothing_is(
    tiny_settings: Make, word_files: Path, tmp_path: Path
) -> None:
    data = word_files / "validation.jsonl"
    silo = write_silo(tmp_path, tiny_settings(), tmp_path / "absent.jsonl")
    found = findings("--silo", str(silo), code=1)
    assert not found["data"][0]
    assert "absent.jsonl" in found["data"][1]
    assert found["approved apps"][0] is False
    silo = write_silo(tmp_path, tiny_settings(), data)
    shown = call("approve", "--silo", str(silo), "--note", "mine", "--json")
    (entry,) = json.loads(shown.stdout)["approved"]
    assert entry["note"] == "mine"
    found = findings("--silo", str(silo), code=0)
    assert "40 examples" in found["data"][1]
    assert "none yet" in found["ledger"][1]
    call("approve", "--silo", str(silo), "--revoke", entry["sha256"])
    assert read_approved(tmp_path / "approved.json") == {}


def test_the_ledgers_epsilon_is_named_beside_the_plans(
    tiny_settings: Make, word_files: Path, tmp_path: Path
) -> None:
    settings = tiny_settings()
    silo = write_silo(tmp_path, settings, word_files / "validation.jsonl")
    with Ledger(tmp_path / "ledger.sqlite", kept=load_silo(silo).kept_heads) as ledger:
        one = SiloAccount(settings, run="one", party="clinic", examples=40, rounds=3, ledger=ledger)
        one.spend_training(1, "train/1")
    good, text = findings("--silo", str(silo), code=1)["ledger"]
    assert good
    assert f"at delta=1e-05, {SO_FAR}; the run's plan, one: " in text
    released = float(text.split("epsilon ")[1].split()[0])
    assert released < float(text.rsplit(" ", 1)[1])
    (head,) = load_silo(silo).kept_heads
    head.unlink()
    good, text = findings("--silo", str(silo), code=1)["ledger"]
    assert not good
    assert f"{head} is missing" in text
    (tmp_path / "ledger.sqlite").unlink()
    good, text = findings("--silo", str(silo), code=1)["ledger"]
    assert not good
    assert "it was deleted or moved" in text


def test_a_server_that_is_not_there_and_a_bad_file_are_findings(tmp_path: Path) -> None:
    write_toml(tmp_path / NODE, NodeFile(name="a", server="127.0.0.1:1"), "")
    (tmp_path / "ca.pem").write_text("", encoding="ascii")
    (tmp_path / "node.key").write_text("", encoding="ascii")
    (tmp_path / "node.key").chmod(0o600)
    (tmp_path / "silo.toml").write_text("nam = 1\n", encoding="utf-8")
    found = findings("--folder", str(tmp_path), code=1)
    assert not found["server"][0]
    assert not found["silo config"][0]
    assert "did you mean name" in found["silo config"][1]
    assert found["port"][0]


def test_code_that_differs_is_named_and_asked_about(
    tiny_settings: Make, word_files: Path, tmp_path: Path
) -> None:
    from bundles import make_app

    silo = write_silo(tmp_path, tiny_settings(), word_files / "validation.jsonl")
    other = make_app(tmp_path / "other", altered="import os")
    done = CliRunner().invoke(
        app, ["deploy", "approve", str(other), "--silo", str(silo)], input="n\n"
    )
    assert done.exit_code == 1
    assert "changed: client/app.py" in done.output
    assert read_approved(tmp_path / "approved.json") == {}
    call("approve", str(other), "--silo", str(silo), "--yes")
    assert len(read_approved(tmp_path / "approved.json")) == 1
    done = call("approve", "no-such-file", "--silo", str(silo), code=2)
    assert "64 hexadecimal digits" in done.output
