"""Send messages to nodes and collect their replies, with a timeout and a way to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from flwr.app import Message
from flwr.serverapp import Grid


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
) -> list[Message | None]:
    """The reply to each message, or None where none came within ``timeout`` seconds.

    Args:
        grid: Flower's connection to the nodes.
        messages: one task for each node.
        stop: set by another thread to give up.
        on_reply: called for each reply as it comes.
        poll: seconds between two looks, growing to half a second.

    Raises:
        Stopped: ``stop`` was set.
    """
    if not messages:
        return []
    ids = list(grid.push_messages(messages))
    waiting = {message_id for message_id in ids if message_id}
    replies: dict[str, Message] = {}
    end = time.monotonic() + timeout
    while waiting and time.monotonic() < end:
        if stop.is_set():
            raise Stopped
        came = list(grid.pull_messages(sorted(waiting)))
        for reply in came:
            message_id = reply.metadata.reply_to_message_id
            if message_id in waiting:  # a second answer to the same task is ignored
                waiting.discard(message_id)
                replies[message_id] = reply
                if on_reply is not None:
                    on_reply(reply)
        if not came:
            stop.wait(poll)
            poll = min(poll * 1.2, 0.5)
        else:
            poll = 0.02
    return [replies.get(message_id) for message_id in ids]


def wait_for_nodes(
    grid: Grid,
    count: int | None,
    *,
    timeout: float,
    stop: threading.Event,
    settle: float = 3.0,
) -> list[int]:
    """Ids of the connected nodes, sorted.

    With ``count``: once there are that many. Without: once there is one and no other has come for
    ``settle`` seconds (Flower starts the ServerApp before all nodes are registered). After
    ``timeout`` seconds: those that are there.

    Raises:
        Stopped: ``stop`` was set.
    """
    end = time.monotonic() + timeout
    seen: list[int] = []
    since = time.monotonic()
    while True:
        nodes = sorted(grid.get_node_ids())
        now = time.monotonic()
        if nodes != seen:
            seen, since = nodes, now
        settled = bool(nodes) and now - since >= settle
        if (len(nodes) >= count if count is not None else settled) or now > end:
            return nodes
        if stop.wait(0.05):
            raise Stopped
