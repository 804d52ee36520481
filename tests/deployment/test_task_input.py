"""Tasks whose message never comes, and lost ones: Flower's own SuperNode parts, and the real executor beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from bundles import bundle_of, make_app
from configured_silo import write_silo
from deployments import free_ports, wait_for
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode, Status, SubStatus
from flwr.supercore.date import now
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _pull_and_store_message

from client.executor.approval import digest_of
from client.executor.executor import Address, Executor

Make = Callable[..., Any]


class Node:
    """A SuperNode's state and runtime interface; messages come from the test in place of a SuperLink."""

    def __init__(self, bundle: bytes) -> None:
        self.bundle = bundle
        store = ObjectStoreFactory()
        states = NodeStateFactory(objectstore_factory=store)
        self.state, self.store = states.state(), store.store()
        self.state.set_node_id(5)
        self.port = free_ports(1)[0]
        self.server = uvicorn.Server(
            uvicorn.Config(create_app(states), port=self.port, log_level="error")
        )
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_for(lambda: self.server.started, "the runtime interface")

    def receive(self, run_id: int, pull: Callable[[str, bytes], bytes]) -> int | None:
        """As Flower's SuperNode takes a message in; ``pull`` gets an object's id and content."""
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1
        content = RecordDict({"question": ConfigRecord({"of": run_id})})
        message = Message(content, dst_node_id=5, message_type="query")
        message.metadata.__dict__["_message_id"] = message.object_id
        objects = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
        run = Run.create_empty(run_id)
        run.fab_hash, run.series_id = digest_of(self.bundle), run_id
        tree = get_object_tree(message)
        return _pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (message, tree),
            get_run=lambda _: run,
            get_fab=lambda *_: Fab(run.fab_hash, self.bundle, {}),
            pull_object=lambda _, object_id: pull(object_id, objects[object_id]),
            confirm_message_received=lambda *_: None,
            trusted_entities=None,
        )

    def status_of(self, run_id: int) -> str:
        status = self.state.get_tasks(run_ids=[run_id])[-1].status
        return f"{status.status}:{status.sub_status}"

    def reply(self, run_id: int, seconds: float = 60) -> Message:
        def replies() -> Any:
            return self.state.get_messages_legacy(run_ids=[run_id], is_reply=True)

        return wait_for(replies, f"a reply of run {run_id}", seconds)[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bundle_of(make_app(tmp_path_factory.mktemp("app") / "fedllm"))


@pytest.fixture
def node(bundle: bytes) -> Iterator[Node]:
    node = Node(bundle)
    yield node
    node.server.should_exit = True
    node.thread.join(30)


@pytest.fixture
def executor(
    node: Node,
    tiny_settings: Make,
    word_files: Path,
    tmp_path: Path,
) -> Iterator[Executor]:
    """Of a silo that has approved no bundle: each task is answered at once, with a refusal."""
    silo = write_silo(tmp_path, tiny_settings(), word_files / "validation.jsonl")
    made = Executor(silo, Address(f"127.0.0.1:{node.port}"))
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.interrupt()
    thread.join(30)
    assert not thread.is_alive()


def as_it_is(_: str, content: bytes) -> bytes:
    return content


def is_asked_for(node: Node, run_id: int) -> None:
    wait_for(lambda: node.status_of(run_id) == f"{Status.RUNNING}:", "the executor")
    time.sleep(0.5)  # it has asked for the message, and looks for its parts


def test_a_message_is_waited_for(node: Node, executor: Executor) -> None:
    """Also for longer than a look for another task takes."""
    begin = time.monotonic()

    def slow(object_id: str, content: bytes) -> bytes:
        if time.monotonic() - begin < 4:
            raise ObjectUnavailableError(object_id)
        return content

    assert node.receive(1, slow) == 1
    reply = node.reply(1)
    assert reply.error.code == ErrorCode.INVALID_FAB
    wait_for(lambda: node.status_of(1) == f"{Status.FINISHED}:{SubStatus.FAILED}", "its end")


def test_a_dead_runs_message_gives_way_to_the_next(
    node: Node, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    """As after the death of a server app in the middle of a round, whose run is then resumed."""

    def dead(_: str, __: bytes) -> bytes:
        is_asked_for(node, 1)
        raise RunNotRunningException

    assert node.receive(1, dead) is None
    assert node.status_of(1) == f"{Status.RUNNING}:"  # Flower leaves it so: why this test exists
    assert node.receive(2, as_it_is) == 2
    assert node.reply(2).error.code == ErrorCode.INVALID_FAB
    assert node.status_of(1) == f"{Status.FINISHED}:{SubStatus.FAILED}"
    assert "started another task" in caplog.text
    # Nothing of the dead run is answered: an answer would be taken for the next message's.
    assert not node.state.get_messages_legacy(run_ids=[1], is_reply=True)
    assert node.receive(3, as_it_is) == 3
    assert node.reply(3).error.code == ErrorCode.INVALID_FAB


def test_a_message_that_the_node_lost_ends_its_task(
    node: Node, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: str, __: bytes) -> bytes:
        is_asked_for(node, 1)
        raise ValueError("no such object")

    assert node.receive(1, broken) is None
    assert node.receive(2, as_it_is) == 2
    assert node.reply(2).error.code == ErrorCode.INVALID_FAB
    assert node.status_of(1) == f"{Status.FINISHED}:{SubStatus.FAILED}"
    assert "a task is lost" in caplog.text


def test_a_task_of_too_many_bytes_is_not_fetched(
    node: Node, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    text = executor.silo_file.read_text()
    small = text.replace("[limits]\n", "[limits]\ntask_bytes = 100\n")
    executor.silo_file.write_text(small)
    assert node.receive(1, as_it_is) == 1
    wait_for(lambda: "Expected a task of at most 100 bytes" in caplog.text, "the refusal")
    assert not node.state.get_messages_legacy(run_ids=[1], is_reply=True)
    executor.silo_file.write_text(text)
    assert node.receive(2, as_it_is) == 2
    assert node.reply(2).error.code == ErrorCode.INVALID_FAB


def test_a_lost_task_is_answered_by_the_node(
    node: Node,
    executor: Executor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A SuperNode waits for an answer without end, unless the task's heartbeats end."""

    def fails(*_: Any) -> Any:
        raise OSError("of this task only")

    with monkeypatch.context() as patch:
        patch.setattr(executor, "answer", fails)
        assert node.receive(1, as_it_is) == 1
        wait_for(lambda: "a task is lost: OSError" in caplog.text, "the log")
    assert node.status_of(1) == f"{Status.RUNNING}:"
    wait_for(lambda: node.state.task_token_store, "its token")
    for record in node.state.task_token_store.values():
        record.active_until = now() - timedelta(seconds=1)  # a minute later
    assert node.reply(1).error.code == ErrorCode.CLIENT_APP_CRASHED
    assert node.receive(2, as_it_is) == 2
    assert node.reply(2).error.code == ErrorCode.INVALID_FAB


def test_a_wait_ends_with_the_executor(node: Node, executor: Executor) -> None:
    def dead(_: str, __: bytes) -> bytes:
        is_asked_for(node, 1)
        raise RunNotRunningException

    assert node.receive(1, dead) is None
    began = time.monotonic()
    executor.interrupt()
    wait_for(lambda: node.status_of(1) == f"{Status.FINISHED}:{SubStatus.FAILED}", "the end")
    assert time.monotonic() - began < 20
