"""A Flower grid with a companion that adds to each task and takes from each reply.

:func:`server.nodes.exchange.exchange` is the only way in which tasks leave and replies come, and asks the companion.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from flwr.app import Message
from flwr.serverapp import Grid


class Companion(Protocol):
    """Sees each task before it is sent, and each reply before anybody reads it."""

    def add_to(self, task: Message) -> None:
        """Add what goes along with a task."""
        ...

    def take(self, node_id: int, reply: Message) -> None:
        """Take out of a reply of a node what came along."""
        ...


class AccompaniedGrid(Grid):
    """Flower's connection to the nodes, and a companion.

    Attributes:
        inner: the connection itself.
    """

    def __init__(self, inner: Grid, companion: Companion) -> None:
        self.inner = inner
        self.companion = companion
        self._asked: dict[str, int] = {}

    def arrived(self, message_id: str, reply: Message) -> None:
        """Let the companion see a reply; whose it is, the task says that it answers, not the reply."""
        node_id = self._asked.pop(message_id, None)
        if node_id is not None:
            self.companion.take(node_id, reply)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send tasks, with what goes along."""
        tasks = list(messages)
        for task in tasks:
            self.companion.add_to(task)
        ids = list(self.inner.push_messages(tasks))
        for message_id, task in zip(ids, tasks, strict=False):
            self._asked[message_id] = task.metadata.dst_node_id
        return ids

    def set_run(self, run: Any) -> None:
        """Delegate to the connection."""
        self.inner.set_run(run)

    @property
    def run(self) -> Any:
        """The connection's run."""
        return self.inner.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Delegate to the connection."""
        return self.inner.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """Delegate to the connection."""
        return self.inner.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """Delegate to the connection."""
        return self.inner.get_nodes()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not used: :class:`server.nodes.pull.Answers` fetches replies."""
        raise NotImplementedError

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        """Not used."""
        raise NotImplementedError
