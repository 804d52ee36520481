"""Fetch replies from the SuperLink one by one, so that no node can stop or stall the others'.

Flower's own grid (``HttpGrid.pull_messages``) fetches all answers one after the other and builds a message of each.
A node that announces an answer and never uploads it holds it up for minutes; one that uploads what is no
message makes it raise; and whose answer it is it takes from the message, where a node may write anything. Here
each answer is fetched by a separate thread, which task it answers is the SuperLink's word (that checked the
node's key), and one that cannot be built, or would be larger than any answer is, becomes an error of its own.

The only file of the server app that uses what Flower does not publish of its grid.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Collection, Mapping
from typing import Any

import httpx
from flwr.app import Array, Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as MessageRow
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid

log = logging.getLogger("fedllm")
MOST_BYTES = 2**30
"""Maximum bytes of one answer, as fetched and as built (an answer may name a piece of an array many times)."""
MOST_OBJECTS = 10_000
"""Maximum objects of one answer: records, arrays and pieces of 5 MiB."""
_PATIENCE = 0.2
"""Seconds that a look waits for answers that are being fetched."""


class AnswerTooLarge(Exception):
    """An answer has more bytes or objects than any honest one."""


class Answers:
    """The answers to some tasks, as they come.

    Args:
        grid: Flower's connection to the nodes.
        most_bytes: of one answer.
    """

    def __init__(self, grid: Grid, most_bytes: int = MOST_BYTES) -> None:
        self.grid = grid
        self.most_bytes = most_bytes
        self._coming: set[str] = set()
        self._done: queue.SimpleQueue[tuple[str, Message]] = queue.SimpleQueue()

    def pull(self, waiting: Collection[str]) -> list[tuple[str, Message]]:
        """Return the answers that are there by now, each with the id of the task that it answers.

        Args:
            waiting: ids of the tasks without an answer.
        """
        if not isinstance(self.grid, HttpGrid):  # within this process: nodes of our own
            found = self.grid.pull_messages(sorted(waiting)) if waiting else []
            return [(reply.metadata.reply_to_message_id, reply) for reply in found]
        self._begin(self.grid, sorted(set(waiting) - self._coming))
        came: list[tuple[str, Message]] = []
        while True:
            try:
                block = bool(self._coming) and not came
                came.append(self._done.get(block, _PATIENCE if block else None))
            except queue.Empty:
                self._coming -= {message_id for message_id, _ in came}
                return came

    def _begin(self, grid: HttpGrid, message_ids: list[str]) -> None:
        """Claim what has been announced, and fetch each by a separate thread."""
        if not message_ids:
            return
        try:
            found = grid._runtime_client.PullMessages(
                PullAppMessagesRequest(message_ids=message_ids)
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.REQUEST_ENTITY_TOO_LARGE:
                raise
            log.error("the SuperLink's list of answers is too large to be fetched")
            return
        for row, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            answered = row.metadata.reply_to_message_id
            if answered in message_ids:
                self._coming.add(answered)
                threading.Thread(target=self._fetch, args=(grid, row, tree), daemon=True).start()

    def _fetch(self, grid: HttpGrid, row: MessageRow, tree: ObjectTree) -> None:
        told = row.metadata
        try:
            reply = self._built(grid, row, tree)
        except Exception as error:  # of this answer alone, whatever a stranger has uploaded
            log.debug("an answer of node %d", told.src_node_id, exc_info=error)
            reason = f"its answer cannot be fetched or read: {type(error).__name__}: {error}"
            reply = make_message(_metadata(row), error=Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))
        self._done.put((told.reply_to_message_id, reply))

    def _built(self, grid: HttpGrid, row: MessageRow, tree: ObjectTree) -> Message:
        """Return the answer, with the SuperLink's word on whose it is."""
        objects = [item.object_id for item in iterate_object_tree(tree)]
        if len(objects) > MOST_OBJECTS:
            raise AnswerTooLarge(f"Expected at most {MOST_OBJECTS} objects, got {len(objects)}")
        run_id, client = grid.run.run_id, grid._runtime_client
        fetch = make_pull_object_fn_protobuf(client.PullObject, grid.node, run_id)
        fetched, lock = 0, threading.Lock()

        def counted(object_id: str) -> bytes:
            nonlocal fetched
            content = fetch(object_id)
            with lock:
                fetched += len(content)
            if fetched > self.most_bytes:
                raise ObjectPullError(object_id, f"more than {self.most_bytes} bytes in one answer")
            return content

        contents = pull_objects(objects, counted)
        message_id = row.metadata.message_id
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=grid.node, run_id=run_id, message_object_id=message_id
            )
        )
        if (size := built_bytes(contents)) > self.most_bytes:
            raise AnswerTooLarge(
                f"Expected at most {self.most_bytes} bytes in one answer, got {size}"
            )
        inflated: Any = inflate_object_from_contents(message_id, contents)
        if not isinstance(inflated, Message):
            raise TypeError(f"Expected a message, got a {type(inflated).__name__}")
        if inflated.has_error():
            return make_message(_metadata(row), error=inflated.error)
        return make_message(_metadata(row), content=inflated.content)


def built_bytes(contents: Mapping[str, bytes]) -> int:
    """Return the bytes of all arrays of an answer once they are put together of their pieces.

    Raises:
        Exception: of several kinds, where the contents are no objects of Flower's.
    """
    total = 0
    for content in contents.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            pieces = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            total += sum(len(contents[children[piece]]) for piece in pieces)
    return total


def _metadata(row: MessageRow) -> Metadata:
    told = row.metadata
    return Metadata(
        run_id=told.run_id,
        message_id=told.message_id,
        src_node_id=told.src_node_id,
        dst_node_id=told.dst_node_id,
        reply_to_message_id=told.reply_to_message_id,
        group_id=told.group_id,
        created_at=told.created_at,
        ttl=told.ttl,
        message_type=told.message_type,
    )
