"""Send messages to nodes and collect their replies, with a timeout and a way to stop."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.superlink.grid.http_grid import HttpGrid

from server.nodes.accompanied import AccompaniedGrid
from server.nodes.pull import Answers

log = logging.getLogger("fedllm")
GRACE = 15.0
"""Seconds from the end of an outage of the SuperLink until tasks without an answer are sent again."""


class FailedAttempts(logging.Handler):
    """Counts this process's failed attempts to reach the SuperLink, by what Flower logs of each.

    Flower's grid tries again within the call and tells its caller nothing.
    """

    TEXT = "Connection attempt failed, retrying in %.2f seconds"

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        logging.getLogger("flwr").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record of a failed attempt; others are none of its business."""
        self.count += record.msg == self.TEXT


_attempts = FailedAttempts()


class Stopped(Exception):
    """The run was asked to stop while it waited for replies."""


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    *,
    timeout: float,
    stop: threading.Event,
    on_reply: Callable[[Message], None] | None = None,
    poll: float = 0.02,
    failures: Callable[[], int] | None = None,
    grace: float = GRACE,
) -> list[Message | None]:
    """Return the reply to each message, or None where none came within ``timeout`` seconds.

    A SuperLink that dies while it hands a task out has it noted as delivered, and the node never gets it.
    An answer that it was being sent it forgets, and says so by an error. So after the SuperLink was away, tasks
    without an answer or with an error are sent once more; of two answers the first counts, and a node
    with its own data answers the same task by the same bytes (:mod:`client.replies`).

    Args:
        grid: Flower's connection to the nodes.
        messages: one task for each node.
        stop: set by another thread to give up.
        on_reply: called for each reply as it comes.
        poll: seconds between two looks, growing to half a second.
        failures: how often the SuperLink could not be reached so far. Empty: :class:`FailedAttempts` on
            Flower's deployment engine, and none on others, which lose nothing.
        grace: seconds from the end of an outage until tasks are sent again, for answers that are on their
            way.

    Raises:
        Stopped: ``stop`` was set.
    """
    if not messages:
        return []
    connection = grid.inner if isinstance(grid, AccompaniedGrid) else grid
    if failures is None:
        deployed = isinstance(connection, HttpGrid)
        failures = (lambda: _attempts.count) if deployed else (lambda: 0)
    in_turn = getattr(connection, "in_turn", False)  # within this process: nothing can be lost
    end = math.inf if in_turn else time.monotonic() + timeout
    again_at, failed = math.inf, failures()
    number_of: dict[str, int] = {}
    replies: dict[int, Message] = {}
    errors: dict[int, Message] = {}  # of tasks that will be sent again

    def send(numbers: Sequence[int], chosen: Sequence[Message]) -> set[str]:
        sent = dict(zip(_push(grid, chosen, failures), numbers, strict=False))
        number_of.update({message_id: number for message_id, number in sent.items() if message_id})
        return {message_id for message_id in sent if message_id}

    def accept(number: int, reply: Message) -> None:
        replies[number] = reply
        if on_reply is not None:
            on_reply(reply)

    answers = Answers(connection)
    waiting = send(range(len(messages)), messages)
    while (waiting or errors) and time.monotonic() < end:
        if stop.is_set():
            raise Stopped
        if failures() != failed:
            again_at, failed = time.monotonic() + grace, failures()
        if time.monotonic() >= again_at:
            again_at = math.inf
            left = sorted({number_of[message_id] for message_id in waiting} | set(errors))
            log.warning(
                "the SuperLink was away: %d tasks without an answer are sent again", len(left)
            )
            again = send(left, [_again(messages[number]) for number in left])
            waiting |= again
            for number in {number_of[message_id] for message_id in again} & set(errors):
                del errors[number]
            for number in sorted(errors):  # to whom nothing can be sent
                accept(number, errors.pop(number))
        came = answers.pull(waiting)
        for message_id, reply in came:
            if message_id not in waiting:  # a second answer to the same task is ignored
                continue
            if isinstance(grid, AccompaniedGrid):
                grid.arrived(message_id, reply)
            waiting.discard(message_id)
            number = number_of[message_id]
            twins = {other for other in waiting if number_of[other] == number}
            if reply.has_error() and (twins or again_at < math.inf):
                if not twins:
                    errors[number] = reply
                continue
            waiting -= twins
            accept(number, reply)
        if not came:
            stop.wait(poll)
            poll = min(poll * 1.2, 0.5)
        else:
            poll = 0.02
    return [replies.get(number, errors.get(number)) for number in range(len(messages))]


def _push(
    grid: Grid, messages: Sequence[Message], failures: Callable[[], int], tries: int = 5
) -> list[str]:
    """Send messages; once more, where the SuperLink went away meanwhile and forgot that it was being sent them.

    Raises:
        ObjectPushError: that was not the reason, or it went away each time.
    """
    while True:
        failed, tries = failures(), tries - 1
        try:
            return list(grid.push_messages(messages))
        except ObjectPushError:
            if failures() == failed or not tries:
                raise
            log.warning("the SuperLink was away as tasks were sent: all are sent again")
            messages = [_again(message) for message in messages]


def _again(message: Message) -> Message:
    """Return the same task as a message of its own."""
    told = message.metadata
    return Message(
        message.content,
        dst_node_id=told.dst_node_id,
        message_type=told.message_type,
        group_id=told.group_id,
        ttl=told.ttl,
    )
