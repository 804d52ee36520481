"""Nodes that answer each message with a content of their own, whatever it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from forged_replies import LONG


class Answering(Grid):
    """Nodes that answer each message with a content of their own."""

    def __init__(self, contents: dict[int, RecordDict | None], names: dict[int, str]) -> None:
        self.contents = contents
        self.names = names
        self.answers: dict[str, Message] = {}
        self.asked: list[int] = []

    def get_node_ids(self) -> list[int]:
        return list(self.contents)

    def get_nodes(self) -> Any:
        return [NodeInfo(node_id=n, name=self.names.get(n, "")) for n in self.contents]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.asked.append(node)
            message.metadata.__dict__["_message_id"] = f"message-{len(self.asked)}"
            ids.append(message.metadata.message_id)
            content = self.contents[node]
            reply = Message(RecordDict(), reply_to=message)
            if content is None:
                reply = Message(Error(2, LONG), reply_to=message)
            else:
                reply.__dict__["_content"] = content
            self.answers[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.answers.pop(name) for name in message_ids if name in self.answers]

    set_run = run = create_message = send_and_receive = None  # type: ignore[assignment]
