"""The silo's side of extracts: when one goes with a reply, and what a silo keeps to itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configured_silo import write_silo
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from client import extract
from client.config import SiloConfig, load_silo
from fedllm import messages as names
from fedllm.report.extract.keys import EXTRACT, HEAD, load_node_key
from fedllm.report.extract.statement import Extract, Head, parse
from fedllm.settings.io import to_json
from server.deployment.certificates import make_node_key


class Clock:
    """Seconds, as the test sets them; an extract takes one of them."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def ask(tiny_settings: Callable[..., Any], tmp_path: Path) -> Callable[..., RecordDict]:
    """``ask(kind, status)``: the content of a reply with what goes along."""
    settings = tiny_settings()
    path = write_silo(tmp_path, settings, tmp_path / "data.jsonl")
    make_node_key(tmp_path / "node.key", tmp_path / "node.pub")

    def asked(kind: str = MessageType.TRAIN, status: str = names.OK, **changes: Any) -> RecordDict:
        own: SiloConfig = load_silo(path).model_copy(update=changes)
        config = ConfigRecord({names.SETTINGS: to_json(settings), names.RUN_ID: "run"})
        task = Message(RecordDict({names.CONFIG: config}), dst_node_id=1, message_type=kind)
        content = RecordDict({names.INFO: ConfigRecord({names.STATUS: status})})
        extract.add_extract(own, task, content)
        return content

    return asked


@pytest.fixture(autouse=True)
def nothing_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "_made", {})


def test_an_extract_is_signed_with_the_nodes_key(
    ask: Callable[..., RecordDict], tmp_path: Path
) -> None:
    found: Any = ask()[names.LEDGER]
    key = load_node_key(tmp_path / "node.pub")
    assert key.verifies(EXTRACT, found[names.EXTRACT], found[names.EXTRACT_SIGNATURE])
    assert key.verifies(HEAD, found[names.HEAD], found[names.HEAD_SIGNATURE])
    stated = parse(Extract, found[names.EXTRACT])
    assert (stated.silo, stated.run, stated.rows_of_run, stated.events) == ("clinic", "run", 0, ())
    assert stated.budget is not None
    assert (stated.budget.epsilon, stated.budget.left) == (60.0, 60.0)
    assert parse(Head, found[names.HEAD]).ledger == stated.ledger


def test_a_silo_says_as_much_as_its_file_allows(
    ask: Callable[..., RecordDict], tmp_path: Path
) -> None:
    found: Any = ask(extract="epsilon")[names.LEDGER]
    stated = parse(Extract, found[names.EXTRACT])
    assert (stated.events, stated.plan) == (None, None)
    assert names.LEDGER not in ask(extract="none")
    (tmp_path / "node.key").unlink()
    assert names.LEDGER not in ask(names.ASK_EXTRACT)


def test_accounting_takes_a_small_share_of_a_runs_time(
    ask: Callable[..., RecordDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, signed = Clock(), extract._signed

    def slow(*args: Any) -> ConfigRecord:
        clock.now += 1.0
        return signed(*args)

    monkeypatch.setattr(extract, "time", clock)
    monkeypatch.setattr(extract, "_signed", slow)
    sent = []
    for _ in range(100):  # rounds of 3 s
        sent.append(names.LEDGER in ask())
        clock.now += 3.0
    assert sent[0]
    assert 12 <= sum(sent) <= 16
    assert names.LEDGER in ask(names.ASK_EXTRACT), "always at the end"
    assert names.LEDGER in ask(status=names.LEFT), "always where the silo leaves"
    assert names.LEDGER not in ask()
