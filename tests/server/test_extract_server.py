"""The server's side of extracts: what a reply brings is kept, refused or passed over; the last heads outlive a run."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from report_runs import NOISE, SILOS, new_run
from vouching import Silo

from client.replies import task_key
from fedllm import messages as names
from fedllm.report import build
from fedllm.report.extract.keys import EXTRACT, HEAD
from fedllm.report.extract.make import make_head
from fedllm.report.extract.memory import read_kept
from fedllm.report.extract.statement import LONGEST, Extract, text_of
from fedllm.report.extract.statement import Head as SignedHead
from fedllm.report.extract.store import FOLDER, path_of, read_extract, read_index
from privacy.events.constructors import dp_sgd
from privacy.ledger.ledger import Adoption, Head, Ledger, adopt_ledger
from server.extracts import Extracts
from server.spending import SpendingView
from simulations.in_process import LocalGrid

NODE = 7


class Stage:
    """A server, one silo, and the replies that this silo may send."""

    def __init__(self, tmp_path: Path) -> None:
        self.memory = tmp_path / "memory"
        self.run = new_run(tmp_path)
        self.silo = Silo(tmp_path / "silos", "A")
        self.begin()

    def begin(self) -> None:
        self.extracts = Extracts(self.run, {"A": self.silo.key.public}, self.memory)
        self.extracts.begin(LocalGrid(None, 0), {"A": NODE})

    def enter(self, round_: int) -> None:
        self.silo.enter(self.run, round_, dp_sgd(SILOS["A"], NOISE, 1))

    def brought(self, changes: Mapping[str, Any] = MappingProxyType({})) -> ConfigRecord:
        """What a reply brings now, with other values in some fields."""
        with Ledger(self.silo.ledger, read_only=True) as ledger:
            head = make_head(ledger, "A")
        return ConfigRecord({**self.of(self.silo.extract(self.run), head), **changes})

    def of(self, extract: Extract, head: SignedHead) -> ConfigRecord:
        texts = {names.EXTRACT: text_of(extract), names.HEAD: text_of(head)}
        key = self.silo.key
        signatures = {
            names.EXTRACT_SIGNATURE: key.sign(EXTRACT, texts[names.EXTRACT]),
            names.HEAD_SIGNATURE: key.sign(HEAD, texts[names.HEAD]),
        }
        return ConfigRecord({**texts, **signatures})

    def take(self, brought: ConfigRecord | None) -> None:
        task = Message(RecordDict(), dst_node_id=NODE, message_type=MessageType.TRAIN)
        content = RecordDict() if brought is None else RecordDict({names.LEDGER: brought})
        reply = Message(content, reply_to=task)
        self.extracts.take(NODE, reply)
        assert names.LEDGER not in reply.content

    @property
    def rows(self) -> int | None:
        """Rows of the ledger that the silo vouches for; None where it does not."""
        found = read_extract(self.run.path, "A", read_index(self.run.path)["A"], self.run.run_id)
        return None if found.extract is None else found.extract.ledger.rows

    @property
    def problem(self) -> str:
        return read_index(self.run.path)["A"].problem


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_the_newest_extract_is_kept(stage: Stage) -> None:
    assert stage.rows is None
    stage.enter(1)
    first = stage.brought()
    stage.take(first)
    assert stage.rows == 1
    stage.enter(2)
    stage.take(stage.brought())
    stage.take(first)  # late, or sent again
    stage.take(None)
    assert (stage.rows, stage.problem) == (2, "")


@pytest.mark.parametrize(
    "name", [names.EXTRACT, names.EXTRACT_SIGNATURE, names.HEAD, names.HEAD_SIGNATURE]
)
@pytest.mark.parametrize("value", ["", "00", 5, [1.0], "x" * (LONGEST + 1)])
def test_what_is_no_signed_extract_is_not_kept(stage: Stage, name: str, value: Any) -> None:
    stage.enter(1)
    stage.take(stage.brought())
    stage.enter(2)
    stage.take(stage.brought({name: value}))
    assert stage.rows is None
    assert stage.problem
    before = stage.problem
    stage.take(stage.brought())
    assert (stage.rows, stage.problem) == (None, before), "and is not made good later"
    assert read_kept(stage.memory)["A"].head.ledger.rows in (1, 2)


def test_another_silos_key_and_an_unregistered_one_are_refused(
    stage: Stage, tmp_path: Path
) -> None:
    stage.enter(1)
    stranger = Silo(tmp_path / "strangers", "A").key
    text = str(stage.brought()[names.EXTRACT])
    stage.take(stage.brought({names.EXTRACT_SIGNATURE: stranger.sign(EXTRACT, text)}))
    assert "is not signed with its registered node key" in stage.problem
    assert not path_of(stage.run.path / FOLDER, "A").exists()


def test_a_ledger_that_was_set_back_is_noticed(stage: Stage) -> None:
    stage.enter(1)
    old = stage.silo.ledger.read_bytes()
    stage.enter(2)
    stage.take(stage.brought())
    for path in stage.silo.folder.glob("ledger.sqlite*"):
        path.unlink()
    stage.silo.ledger.write_bytes(old)
    stage.take(stage.brought())
    assert stage.rows is None
    assert "holds 1 rows" in stage.problem
    assert "after it had vouched for 2" in stage.problem


def test_a_ledger_that_was_adopted_deliberately_vouches_again_and_says_so(stage: Stage) -> None:
    stage.enter(1)
    old = stage.silo.ledger.read_bytes()
    stage.enter(2)
    stage.enter(3)
    stage.take(stage.brought())
    lost = stage.extracts.kept["A"].head.ledger
    for path in stage.silo.folder.glob("ledger.sqlite*"):
        path.unlink()
    stage.silo.ledger.write_bytes(old)
    aside = (Head(lost.rows, lost.hash),)
    adopt_ledger(stage.silo.ledger, Adoption("the disk of March", aside))
    stage.take(stage.brought())
    assert (stage.rows, stage.problem) == (2, ""), "the row of round 1, and that of the decision"
    found = read_extract(stage.run.path, "A", read_index(stage.run.path)["A"], stage.run.run_id)
    assert found.extract is not None
    (said,) = found.extract.adoptions
    assert "because: the disk of March" in said
    report = build(stage.run)
    assert any(
        "The silo A states" in note and "the disk of March" in note for note in report["notes"]
    )
    assert "Adopted ledger" in [item["title"] for item in report["assumptions"]]


def test_two_ledgers_of_one_silo_are_noticed(stage: Stage) -> None:
    stage.enter(1)
    stage.take(stage.brought())
    extract = stage.silo.extract(stage.run)
    with Ledger(stage.silo.ledger, read_only=True) as ledger:
        head = make_head(ledger, "A")
    fork = head.ledger.model_copy(update={"hash": "f" * 64})
    later = {"made": "2999-01-01T00:00:00.000+00:00", "ledger": fork}
    stage.take(stage.of(extract.model_copy(update=later), head.model_copy(update=later)))
    assert "two ledgers are in use" in stage.problem


def test_the_last_head_goes_with_each_task_and_into_the_next_run(
    stage: Stage, tmp_path: Path
) -> None:
    seen: list[Any] = []

    class Grid(LocalGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            for message in messages:
                seen.append(dict(message.content.config_records[names.LEDGER]))
            return ["id"]

    def ask() -> dict[str, Any]:
        grid = stage.extracts.begin(Grid(None, 0), {"A": NODE})
        shared = RecordDict()
        task = Message(shared, dst_node_id=NODE, message_type=MessageType.TRAIN)
        grid.push_messages([task])
        assert names.LEDGER not in shared, "a record that tasks share is left alone"
        return dict(seen[-1])

    assert set(ask()) == {names.DELTA}
    stage.enter(1)
    brought = stage.brought()
    stage.take(brought)
    assert ask()[names.HEAD] == brought[names.HEAD]
    assert ask()[names.HEAD_SIGNATURE] == brought[names.HEAD_SIGNATURE]
    stage.run = new_run(tmp_path)
    stage.begin()
    assert ask()[names.HEAD] == brought[names.HEAD], "of the deployment, not of the run"
    stage.silo = Silo(tmp_path / "renewed", "A")
    stage.begin()
    assert set(ask()) == {names.DELTA}, "a node with a new key cannot believe the old one's head"


def test_the_head_in_a_task_does_not_make_it_another_task() -> None:
    def key(**records: ConfigRecord) -> str:
        config = ConfigRecord({names.ROUND: 1})
        content = RecordDict({names.CONFIG: config, **records})
        return task_key(Message(content, dst_node_id=NODE, message_type=MessageType.TRAIN))

    assert key() == key(**{names.LEDGER: ConfigRecord({names.HEAD: "x"})})
    assert key() != key(**{names.PARAMS: ConfigRecord({names.HEAD: "x"})})


def test_a_run_that_goes_on_keeps_what_was_there(stage: Stage) -> None:
    stage.enter(1)
    stage.take(stage.brought())
    stage.extracts.silos["A"] = replace(stage.extracts.silos["A"], final=True)
    stage.begin()
    assert stage.rows == 1
    assert read_index(stage.run.path)["A"].final is False


@pytest.mark.parametrize("answer", ["newest", "none", "older", "damaged", "error", "silence"])
def test_an_extract_is_final_where_the_last_answer_brought_it(stage: Stage, answer: str) -> None:
    stage.enter(1)
    older = stage.brought()
    stage.enter(2)
    stage.take(stage.brought())
    stage.enter(3)
    records = {
        "newest": stage.brought(),
        "older": older,
        "damaged": stage.brought({names.EXTRACT: "{}"}),
    }

    class Grid(LocalGrid):
        def get_node_ids(self) -> Iterable[int]:
            return [NODE]

    def answered(grid: Any, tasks: list[Message], **options: Any) -> list[Message | None]:
        (task,) = tasks
        if answer == "silence":
            return [None]
        if answer == "error":
            return [Message(Error(code=0, reason="it died"), reply_to=task)]
        record = records.get(answer)
        reply = Message(RecordDict({} if record is None else {names.LEDGER: record}), reply_to=task)
        stage.extracts.take(NODE, reply)
        return [reply]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.extracts.exchange", answered)
        spending = SpendingView(stage.run.settings())
        stage.extracts.finish(Grid(None, 0), spending, threading.Event())
    index = read_index(stage.run.path)["A"]
    assert index.final is (answer == "newest")
    assert index.told == ()
