"""Sending and waiting: late, double and missing replies, and the way to stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import httpx
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import GetNodesRequest
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from server.nodes.discovery import wait_for_nodes
from server.nodes.exchange import FailedAttempts, Stopped, exchange
from simulations.benchmarks.local_federation import free_ports


class Scripted:
    """A grid whose replies come at given looks: ``script[look]`` names the tasks answered; a negative number
    -n the task n - 1, by an error. In the looks of ``away`` the SuperLink is not reached at first."""

    def __init__(
        self,
        script: Sequence[Sequence[int]],
        nodes: Sequence[Sequence[int]] = (),
        away: Sequence[int] = (),
    ) -> None:
        self.script, self.nodes, self.away = list(script), list(nodes), away
        self.failures = 0
        self.sent: list[Message] = []
        self.looks = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        before = len(self.sent)
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{len(self.sent)}"
            self.sent.append(message)
        return [message.metadata.message_id for message in self.sent[before:]]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        assert list(message_ids)
        now = self.script[self.looks] if self.looks < len(self.script) else []
        self.failures += self.looks in self.away
        self.looks += 1
        return [
            Message(RecordDict(), reply_to=self.sent[i])
            if i >= 0
            else Message(Error(0, "gone"), reply_to=self.sent[-i - 1])
            for i in now
        ]

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self.get_node_ids()]

    def get_node_ids(self) -> list[int]:
        self.looks += 1
        return list(self.nodes[min(self.looks, len(self.nodes)) - 1])


def tasks(count: int) -> list[Message]:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return [Message(RecordDict(), dst_node_id=i + 10, message_type="train") for i in range(count)]


def test_replies_come_in_any_order_and_are_returned_in_the_order_of_the_tasks() -> None:
    grid: Any = Scripted([[2], [], [0, 1]])
    seen: list[str] = []
    replies = exchange(
        grid,
        tasks(3),
        timeout=5,
        stop=threading.Event(),
        on_reply=lambda r: seen.append(r.metadata.reply_to_message_id),
    )
    assert [r.metadata.reply_to_message_id for r in replies if r] == ["m0", "m1", "m2"]
    assert seen == ["m2", "m0", "m1"]


def test_second_answer_is_ignored() -> None:
    grid: Any = Scripted([[0, 0], [0], [1]])
    count = []
    replies = exchange(grid, tasks(2), timeout=5, stop=threading.Event(), on_reply=count.append)
    assert len(count) == 2
    assert all(replies)


def test_missing_reply_is_none_after_the_timeout() -> None:
    grid: Any = Scripted([[1]])
    began = time.monotonic()
    replies = exchange(grid, tasks(2), timeout=0.4, stop=threading.Event())
    assert 0.3 < time.monotonic() - began < 3
    assert replies[0] is None
    assert replies[1] is not None


@pytest.mark.parametrize(
    ("after", "answered"),
    [
        ([[3]], ["m0", "m3", "m2"]),  # task 1 was lost; it is sent again as m3
        ([[1], [3]], ["m0", "m1", "m2"]),  # it was not lost, but slow
        ([[1, 3]], ["m0", "m1", "m2"]),  # both at once
        ([[-4], [1]], ["m0", "m1", "m2"]),  # an error of the second counts for nothing
        ([[-2], [3]], ["m0", "m3", "m2"]),  # nor one of the first, while the second may come
        ([[-2], [-4]], ["m0", "error", "m2"]),
        ([[-4], [-2]], ["m0", "error", "m2"]),
        ([], ["m0", None, "m2"]),
    ],
)
def test_after_an_outage_tasks_without_an_answer_are_sent_again(
    after: list[list[int]], answered: list[str | None]
) -> None:
    grid: Any = Scripted([[0], [2], [], [], *after], away=[1])
    count: list[Message] = []
    replies = exchange(
        grid,
        tasks(3),
        timeout=1.5,
        stop=threading.Event(),
        on_reply=count.append,
        failures=lambda: grid.failures,
        grace=0.0,
    )
    found = [r and ("error" if r.has_error() else r.metadata.reply_to_message_id) for r in replies]
    assert found == answered
    assert len(count) == len([r for r in replies if r])
    assert len(grid.sent) == 4  # once, and only what was waited for
    first, again = grid.sent[1], grid.sent[3]
    assert again.content is first.content
    assert again.metadata.dst_node_id == first.metadata.dst_node_id == 11
    assert again.metadata.message_type == "train"


def test_an_error_after_an_outage_is_a_reason_to_send_again() -> None:
    """The SuperLink forgot that it was being sent the answer; the node gives it again."""
    grid: Any = Scripted([[0], [-2], [], [2]], away=[0])
    options: Any = {"failures": lambda: grid.failures, "grace": 0.05}
    replies = exchange(grid, tasks(2), timeout=5, stop=threading.Event(), **options)
    assert [r.metadata.reply_to_message_id for r in replies if r] == ["m0", "m2"]
    assert not any(r.has_error() for r in replies if r)
    # Late in the time that a round has, the error is all there is to tell.
    grid = Scripted([[0], [-2]], away=[0])
    options["grace"] = 60.0
    replies = exchange(grid, tasks(2), timeout=0.5, stop=threading.Event(), **options)
    assert [bool(r and r.has_error()) for r in replies] == [False, True]
    # Without an outage it is the answer.
    grid = Scripted([[0], [-2]])
    replies = exchange(grid, tasks(2), timeout=5, stop=threading.Event(), grace=0.0)
    assert [bool(r and r.has_error()) for r in replies] == [False, True]
    assert len(grid.sent) == 2


def test_tasks_are_sent_anew_where_the_superlink_forgot_that_it_was_being_sent_them() -> None:
    class Forgets(Scripted):
        left = 2

        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            ids = super().push_messages(messages)
            if self.left:
                self.left -= 1
                self.failures += self.reached_again
                raise ObjectPushError("object", 1, "session")
            return ids

        reached_again = 1

    grid: Any = Forgets([[4], [5]])
    replies = exchange(
        grid, tasks(2), timeout=5, stop=threading.Event(), failures=lambda: grid.failures
    )
    assert [r.metadata.reply_to_message_id for r in replies if r] == ["m4", "m5"]
    assert len({message.metadata.message_id for message in grid.sent}) == 6
    grid = Forgets([[4], [5]])
    grid.reached_again = 0  # no outage: the reason is another
    with pytest.raises(ObjectPushError):
        exchange(grid, tasks(2), timeout=5, stop=threading.Event(), failures=lambda: grid.failures)


def test_nothing_is_sent_again_while_answers_may_be_on_their_way() -> None:
    def sent_of(**options: Any) -> int:
        grid: Any = Scripted([[], [], [0]], away=[0])
        if "grace" in options:
            options["failures"] = lambda: grid.failures
        assert all(exchange(grid, tasks(1), timeout=5, stop=threading.Event(), **options))
        return len(grid.sent)

    assert sent_of(grace=9.0) == 1
    assert sent_of(grace=0.0) == 2
    assert sent_of() == 1  # an engine that loses nothing


def test_flower_tells_of_failed_attempts_as_is_thought_here() -> None:
    """By its own client, at a port where nobody listens."""
    attempts = FailedAttempts()
    try:
        invoker = make_simple_http_retry_invoker()
        invoker.max_tries = 3
        (port,) = free_ports(1)
        client = RuntimeHttpClient.from_server_address(
            server_address=f"127.0.0.1:{port}",
            insecure=True,
            root_certificates=None,
            interceptors=[],
            retry_invoker=invoker,
        )
        with pytest.raises(httpx.ConnectError):
            client.GetNodes(GetNodesRequest())
        client.close()
        assert attempts.count == 2
    finally:
        logging.getLogger("flwr").removeHandler(attempts)


def test_no_tasks_need_no_grid() -> None:
    grid: Any = None
    assert exchange(grid, [], timeout=1, stop=threading.Event()) == []


def test_stop_ends_the_wait_at_once() -> None:
    grid: Any = Scripted([])
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        exchange(grid, tasks(1), timeout=60, stop=stop)
    assert time.monotonic() - began < 3


def test_nodes_are_awaited_up_to_a_number_or_until_no_other_comes() -> None:
    stop = threading.Event()
    grid: Any = Scripted([], [[], [7], [7, 5], [9, 7, 5]])
    assert [n.node_id for n in wait_for_nodes(grid, 3, timeout=5, stop=stop)] == [5, 7, 9]
    grid = Scripted([], [[], [7], [7, 5]])
    found = wait_for_nodes(grid, None, timeout=5, stop=stop, settle=0.3)
    assert [n.node_id for n in found] == [5, 7]
    grid = Scripted([], [[4]])
    assert [n.node_id for n in wait_for_nodes(grid, 2, timeout=0.3, stop=stop)] == [4]
    stop.set()
    with pytest.raises(Stopped):
        wait_for_nodes(grid, 2, timeout=5, stop=stop)
