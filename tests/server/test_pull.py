"""Answers that no honest node uploads, fetched beside an honest one: each spoils itself alone.

Flower's grid with the SuperLink's side in memory: what rows it has (who answered which task, by its own check of
keys), and what was uploaded for each.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from server.nodes.exchange import exchange
from server.nodes.pull import Answers, built_bytes

Uploads = dict[str, bytes]


class SuperLink:
    """The part of the SuperLink that answers a server app's requests.

    Args:
        make: what the node uploads for its answer to a task: the objects by id, and the message's id.
    """

    def __init__(self, make: dict[int, Callable[[Message], tuple[Uploads, str]]]) -> None:
        self.make = make
        self.rows: dict[str, Any] = {}
        self.objects: Uploads = {}
        self.absent: set[str] = set()
        self.confirmed: list[str] = []

    def push(self, messages: list[Message]) -> list[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            message_id = f"task-of-{node}"
            message.metadata.__dict__["_message_id"] = message_id
            ids.append(message_id)
            uploads, answer_id = self.make[node](message)
            self.objects |= uploads
            row = message_to_proto(Message(RecordDict(), reply_to=message))
            row.metadata.message_id = answer_id
            tree = ObjectTree(
                object_id=answer_id,
                children=[ObjectTree(object_id=i) for i in uploads if i != answer_id],
            )
            self.rows[message_id] = (row, tree)
        return ids

    def PullMessages(self, request: Any) -> Any:
        found = [self.rows.pop(i) for i in list(request.message_ids) if i in self.rows]
        return SimpleNamespace(
            messages_list=[row for row, _ in found],
            message_object_trees=[tree for _, tree in found],
        )

    def PullObject(self, request: Any) -> Any:
        content = self.objects.get(request.object_id)
        return SimpleNamespace(
            object_found=content is not None,
            object_available=request.object_id not in self.absent,
            object_content=content,
        )

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed.append(request.message_object_id)


class Joined(HttpGrid):
    """Flower's grid, joined to that SuperLink."""

    def __init__(self, link: SuperLink) -> None:
        super().__init__(token="token")
        self.link = link

    @property
    def run(self) -> Any:
        return SimpleNamespace(run_id=1)

    @property
    def _runtime_client(self) -> Any:
        return self.link

    def push_messages(self, messages: Any) -> list[str]:
        return self.link.push(list(messages))


@pytest.fixture(autouse=True)
def identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def content(value: float = 1.0) -> RecordDict:
    return RecordDict({"update": ArrayRecord({"prefix": Array(np.full(3, value, np.float32))})})


def uploaded(message: Message) -> tuple[Uploads, str]:
    objects = get_all_nested_objects(message)
    return {name: value.deflate() for name, value in objects.items()}, message.object_id


def honest(task: Message) -> tuple[Uploads, str]:
    return uploaded(Message(content(), reply_to=task))


def in_anothers_name(task: Message) -> tuple[Uploads, str]:
    """A message whose own words make it alpha's answer."""
    reply = Message(content(666.0), reply_to=task)
    told = reply.metadata.__dict__
    told["_reply_to_message_id"], told["_src_node_id"] = "task-of-10", 10
    return uploaded(reply)


def raw(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    data = f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body
    return get_object_id(data), data


def no_message(task: Message) -> tuple[Uploads, str]:
    return uploaded(ConfigRecord({"a": 1}))  # type: ignore[arg-type]


def no_object(task: Message) -> tuple[Uploads, str]:
    name, data = raw("Message", [], b"\xff\xfe not a message")
    return {name: data}, name


def unknown_kind(task: Message) -> tuple[Uploads, str]:
    name, data = raw("os.system", [], b"true")
    return {name: data}, name


def not_utf8(task: Message) -> tuple[Uploads, str]:
    data = b"\xff\xff\xff \x00"
    return {get_object_id(data): data}, get_object_id(data)


def deep_chain(task: Message) -> tuple[Uploads, str]:
    name, data = raw("RecordDict", [], b"{}")
    found = {name: data}
    for _ in range(3000):
        name, data = raw("RecordDict", [name], json.dumps({"a": name}).encode())
        found[name] = data
    return found, name


def deep_json(task: Message) -> tuple[Uploads, str]:
    name, data = raw("Array", [], b'{"arraychunk_ids": ' + b"[" * 100_000)
    return {name: data}, name


def piece_bomb(task: Message) -> tuple[Uploads, str]:
    """5 MB that are named 10,000 times: 50 GB once they are put together."""
    piece, data = raw("ArrayChunk", [], bytes(5_000_000))
    body = {
        "dtype": "float32",
        "shape": [3],
        "stype": "numpy.ndarray",
        "arraychunk_ids": [0] * 10_000,
    }
    array, whole = raw("Array", [piece], json.dumps(body).encode())
    return {piece: data, array: whole}, array


def too_many_objects(task: Message) -> tuple[Uploads, str]:
    found = dict(raw("ConfigRecord", [], str(i).encode()) for i in range(10_001))
    return found, next(iter(found))


def never_uploaded(task: Message) -> tuple[Uploads, str]:
    found, name = honest(task)
    return {name: found[name]}, "0" * 64


HOSTILE = {
    "no message": (no_message, "TypeError"),
    "no object": (no_object, "cannot be fetched or read"),
    "an unknown kind": (unknown_kind, "KeyError"),
    "not UTF-8": (not_utf8, "UnicodeDecodeError"),
    "a deep chain": (deep_chain, "RecursionError"),
    "deep JSON": (deep_json, "RecursionError"),
    "a bomb of pieces": (piece_bomb, "AnswerTooLarge"),
    "too many objects": (too_many_objects, "AnswerTooLarge"),
    "never uploaded": (never_uploaded, "could not be found"),
}


def tasks(*nodes: int) -> list[Message]:
    return [Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes]


def value_of(reply: Message | None) -> float:
    assert reply is not None
    assert not reply.has_error()
    arrays: Any = reply.content["update"]
    return float(arrays["prefix"].numpy()[0])


@pytest.mark.parametrize("name", HOSTILE)
def test_an_answer_that_cannot_be_read_spoils_itself_alone(name: str) -> None:
    make, why = HOSTILE[name]
    link = SuperLink({10: honest, 11: make, 12: honest})
    began = time.monotonic()
    replies = exchange(Joined(link), tasks(10, 11, 12), timeout=10, stop=threading.Event())
    assert time.monotonic() - began < 8
    assert [value_of(replies[0]), value_of(replies[2])] == [1.0, 1.0]
    assert replies[1] is not None
    assert replies[1].has_error()
    assert why in str(replies[1].error.reason)


def test_an_answer_is_of_the_node_whose_key_was_checked_whatever_it_says() -> None:
    for order in ((10, 11), (11, 10)):
        link = SuperLink({10: honest, 11: in_anothers_name})
        replies = exchange(Joined(link), tasks(*order), timeout=10, stop=threading.Event())
        told = {node: value_of(reply) for node, reply in zip(order, replies, strict=True)}
        assert told == {10: 1.0, 11: 666.0}
        for node, reply in zip(order, replies, strict=True):
            assert reply is not None
            assert reply.metadata.reply_to_message_id == f"task-of-{node}"


def test_an_answer_that_is_announced_and_not_uploaded_holds_up_nobody() -> None:
    def stalls(task: Message) -> tuple[Uploads, str]:
        found, name = honest(task)
        link.absent.add(name)
        return found, name

    link = SuperLink({10: honest, 11: stalls, 12: honest})
    grid = Joined(link)
    came: list[float] = []
    began = time.monotonic()
    replies = exchange(
        grid,
        tasks(10, 11, 12),
        timeout=2,
        stop=threading.Event(),
        on_reply=lambda reply: came.append(time.monotonic() - began),
    )
    assert [value_of(replies[0]), value_of(replies[2])] == [1.0, 1.0]
    assert replies[1] is None, "it is late, as one that never answers"
    assert len(came) == 2
    assert max(came) < 1.5


def test_an_answer_of_more_bytes_than_allowed_is_not_fetched_to_its_end() -> None:
    link = SuperLink({10: honest})
    answers = Answers(Joined(link), most_bytes=100)
    waiting = link.push(tasks(10))
    ((task_id, reply),) = answers.pull(waiting)
    assert task_id == "task-of-10"
    assert reply.has_error()
    assert "more than 100 bytes" in str(reply.error.reason)
    assert link.confirmed == []


def test_errors_of_nodes_come_as_errors() -> None:
    def failed(task: Message) -> tuple[Uploads, str]:
        return uploaded(Message(Error(2, "the silo broke"), reply_to=task))

    (reply,) = exchange(
        Joined(SuperLink({10: failed})), tasks(10), timeout=10, stop=threading.Event()
    )
    assert reply is not None
    assert reply.error.reason == "the silo broke"


def test_built_bytes_count_each_piece_as_often_as_it_is_named() -> None:
    value = np.zeros(4_000_000, np.float32)  # pieces of zeros are alike, and travel once
    message = Message(
        RecordDict({"a": ArrayRecord({"a": Array(value)})}), dst_node_id=1, message_type="train"
    )
    objects, _ = uploaded(message)
    assert sum(map(len, objects.values())) < 12_000_000
    assert 16_000_000 < built_bytes(objects) < 16_100_000
    tree = get_object_tree(message)
    assert tree.object_id in objects
