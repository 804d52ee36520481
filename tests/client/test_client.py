"""The ClientApp: what a node says of itself, and what of an error may leave a silo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configured_silo import write_silo
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.node import open_silo
from client.task_fields import TRAIN, read_fields
from fedllm import messages as names
from fedllm.settings.io import to_json
from fedllm.task_errors import NotTakingPart
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.ledger.ledger import Ledger
from simulations.in_process import over_the_wire

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def context(**node: Any) -> Context:
    return Context(run_id=1, node_id=5, node_config=node, state=RecordDict(), run_config={})


def task(kind: str, settings: Any, folder: Path, server_round: int = 1) -> Message:
    fields = {
        names.SETTINGS: to_json(settings),
        names.RUN_ID: "run",
        names.RUN_FOLDER: str(folder),
        names.ROUND: server_round,
        names.PLANNED_ROUNDS: 3,
    }
    if kind == "query":
        fields = {names.SETTINGS: fields[names.SETTINGS]}
    records: dict[str, Any] = {names.CONFIG: ConfigRecord(fields)}
    if kind != "query":
        params = initial_params(shared_tunable(settings), settings)
        records[names.PARAMS] = ArrayRecord(params)
    return Message(RecordDict(records), dst_node_id=5, message_type=kind)


def info(reply: Message) -> Any:
    return reply.content[names.INFO]


def test_query_tells_silo_and_public_size(tiny_settings: Make, tmp_path: Path) -> None:
    reply = app(task("query", tiny_settings(), tmp_path), context(**{"partition-id": 1}))
    assert info(reply)[names.SILO] == "beta"
    assert info(reply)[names.STATUS] == names.OK
    assert reply.content[names.METRICS][names.EXAMPLES] == 45
    beyond = app(task("query", tiny_settings(), tmp_path), context(**{"partition-id": 4}))
    assert info(beyond)[names.STATUS] == names.IDLE


def test_private_size_is_not_told(tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(**{"data.sizes": "private", "client.sampling_rate": 0.1})
    reply = app(task("query", settings, tmp_path), context(**{"partition-id": 1}))
    assert names.EXAMPLES not in reply.content[names.METRICS]
    trained = app(task("train", settings, tmp_path), context(**{"partition-id": 1}))
    assert info(trained)[names.STATUS] == names.OK
    assert trained.content[names.METRICS][names.SAMPLING_RATE] == 0.1


def test_only_trainable_tensors_and_public_numbers_leave(
    tiny_settings: Make, tmp_path: Path
) -> None:
    reply = app(task("train", tiny_settings(), tmp_path), context(**{"partition-id": 0}))
    update = reply.content[names.UPDATE]
    assert sorted(update) == ["head.bias", "head.weight", "prefix"]
    told = set(reply.content[names.METRICS])
    std = {names.NOISE_STD + name for name in update}
    assert told == {names.NOISE_MULTIPLIER, names.SAMPLING_RATE, names.STEPS} | std
    public = {names.RUN_ID, names.ROUND}
    assert set(info(reply)) == {names.SILO, names.STATUS, names.REASON} | public
    assert set(reply.content) == {names.UPDATE, names.METRICS, names.INFO}


def test_a_silos_own_data_do_not_leave_in_an_error(tiny_settings: Make, tmp_path: Path) -> None:
    """A label that the settings do not know is private: its text stays at the silo."""
    rows = [{"text": "w5", "label": "low"}] * 5 + [{"text": "w6", "label": "HIV-positive"}]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = tiny_settings()
    silo = write_silo(tmp_path, settings, path)
    reply = app(task("train", settings, tmp_path), context(**{"silo-file": str(silo)}))
    assert info(reply)[names.STATUS] == names.LEFT
    assert "HIV" not in str(reply.content)
    assert info(reply)[names.REASON] == str(NotTakingPart())


def test_a_node_with_its_own_data_keeps_its_own_ledger(
    tiny_settings: Make, tmp_path: Path, word_files: Path
) -> None:
    settings = tiny_settings(**{"privacy.ledger": str(tmp_path / "the-servers-choice.sqlite")})
    silo = write_silo(tmp_path / "silo", settings, word_files / "validation.jsonl")
    fields = read_fields(task("train", settings, tmp_path), TRAIN)
    worker = open_silo(fields, context(**{"silo-file": str(silo)}))
    assert worker.ledger.path == tmp_path / "silo" / "ledger.sqlite"
    assert worker.settings.privacy.ledger is None
    assert not (tmp_path / "the-servers-choice.sqlite").exists()
    assert worker.log == tmp_path / "silo" / "rounds.jsonl"
    assert sorted(worker.silo.train.columns) == ["label", "text"]


def test_a_task_that_comes_again_gets_the_same_answer_and_no_new_row(
    tiny_settings: Make, tmp_path: Path, word_files: Path
) -> None:
    """Also with fresh noise: what left once may leave again. Another task is another release."""
    settings = tiny_settings(**{"privacy.randomness": "os", "privacy.spare_rounds": 2})
    silo = write_silo(tmp_path / "silo", settings, word_files / "validation.jsonl")
    node = context(**{"silo-file": str(silo)})

    def rows() -> list[int]:
        with Ledger(tmp_path / "silo" / "ledger.sqlite") as ledger:
            return [row.round for row in ledger.entries()]

    def ask(server_round: int = 1, shift: float = 0.0) -> Any:
        asked = task("train", settings, tmp_path, server_round)
        arrays: Any = asked.content[names.PARAMS]
        moved = {name: value + shift for name, value in arrays.to_torch_state_dict().items()}
        asked.content[names.PARAMS] = ArrayRecord(moved)
        reply = app(over_the_wire(asked, "question"), node)
        assert info(reply)[names.STATUS] == names.OK, info(reply)[names.REASON]
        return reply.content

    first = ask()
    again = ask()
    assert again.object_id == first.object_id
    assert rows() == [1]
    other = ask(shift=0.5)
    assert other[names.UPDATE].object_id != first[names.UPDATE].object_id
    assert rows() == [1, 1]
    ask(2)
    assert rows() == [1, 1, 2]
    ask()  # only the last answer is kept
    assert rows() == [1, 1, 2, 1]


def test_without_a_file_of_its_own_a_node_computes_each_task(
    tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(**{"privacy.randomness": "os"})
    node = context(**{"partition-id": 1})
    first, second = (app(task("train", settings, tmp_path), node).content for _ in range(2))
    assert first[names.UPDATE].object_id != second[names.UPDATE].object_id


def test_malformed_settings_are_a_reply_and_not_a_crash(
    tiny_settings: Make, tmp_path: Path
) -> None:
    good = json.loads(to_json(tiny_settings()))
    good["privacy"]["epsilom"] = 3
    message = task("train", tiny_settings(), tmp_path)
    message.content[names.CONFIG][names.SETTINGS] = json.dumps(good)
    reply = app(message, context(**{"partition-id": 0}))
    assert info(reply)[names.STATUS] == names.FAILED
    assert "privacy.epsilon" in info(reply)[names.REASON]


def test_budget_is_a_reason_to_leave(tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(**{"privacy.epsilon": 0.5})
    reply = app(task("train", settings, tmp_path), context(**{"partition-id": 0}))
    assert info(reply)[names.STATUS] == names.LEFT
    assert names.UPDATE not in reply.content
