"""Fetch a task's input from a silo's SuperNode; give up when the SuperNode has dropped the task.

A SuperNode makes a task known before it has the task's message. Where the message's run ends meanwhile
(its server app was killed, say), Flower's SuperNode forgets about the message and takes the next one, but
neither ends the task nor tells who waits for it: Flower's own ``pull_task_input`` then asks for hours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from flwr.app import Context, Message
from flwr.common.serde import context_from_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullTaskInputRequest
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    pull_and_inflate_object_from_tree,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two looks for a part of a message that the SuperNode does not have yet."""


class TaskInputError(RuntimeError):
    """A task whose message will not come."""


class TaskTooLarge(RuntimeError):
    """A task of more bytes than the silo allows; the rest of it is not fetched."""


def pull_input(
    client: RuntimeHttpClient,
    given_up: Callable[[], str | None],
    look: float = 1.0,
    *,
    most: int = 1 << 32,
) -> tuple[Message, Context, bytes]:
    """Return the message of a task, the app's state and the app's bundle.

    Waits as long as the SuperNode takes to fetch the message: how long is a matter of its size and the
    connection, so no time is set.

    Args:
        client: a connection with the task's token.
        given_up: asked every ``look`` seconds while the message is waited for; a reason ends the wait.
        most: bytes of the message at most (``limits.task_bytes``).

    Raises:
        TaskTooLarge: the message is longer.
        TaskInputError: the message was given up, or the SuperNode has lost it.
        httpx.HTTPError: the SuperNode does not answer, or the task is over for it.
        RuntimeError: the SuperNode has no message for the task.
    """
    source = client.PullTaskInput(PullTaskInputRequest())
    context = context_from_proto(source.context)
    TaskIdentity.task_id = source.task_id
    TaskIdentity.run_id = source.run.run_id
    TaskIdentity.node_id = context.node_id
    found = client.PullMessages(PullAppMessagesRequest())
    if not found.messages_list:
        raise RuntimeError("the SuperNode has no message for the task")
    tree = found.message_object_trees[0]
    node = Node(node_id=context.node_id)
    ask = make_pull_object_fn_protobuf(client.PullObject, node, context.run_id)
    received = make_confirm_message_received_fn_protobuf(
        client.ConfirmMessageReceived, node, context.run_id
    )
    ended, lock, fetched = threading.Event(), threading.Lock(), 0

    def pull(object_id: str) -> bytes:
        nonlocal fetched
        if ended.is_set():
            raise ObjectPullError(object_id, "given up")
        content = ask(object_id)
        with lock:
            fetched += len(content)
        if fetched > most:
            raise TaskTooLarge(
                f"Expected a task of at most {most} bytes (limits.task_bytes of the silo config), got more"
            )
        return content

    with ThreadPoolExecutor(1, thread_name_prefix="task-input") as pool:
        pulled = pool.submit(
            pull_and_inflate_object_from_tree,
            tree,
            pull,
            received,
            return_type=Message,
            max_time=None,
            max_tries_per_object=None,
            initial_backoff=FIRST_PAUSE,
            backoff_cap=LONGEST_PAUSE,
        )
        reason = None
        try:
            while reason is None:
                try:
                    message = pulled.result(timeout=look)
                    break
                except TimeoutError:
                    if pulled.done():
                        raise
                    reason = given_up()
        except ObjectPullError as error:
            raise TaskInputError(f"the SuperNode has lost the task's message: {error}") from error
        finally:
            ended.set()
    if reason is not None:
        raise TaskInputError(f"the task's message did not come: {reason}")
    message.metadata.__dict__["_message_id"] = tree.object_id  # which the message itself lacks
    return message, context, source.fab.content
