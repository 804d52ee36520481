"""A federation within this process: the real ServerApp logic and the real ClientApp, joined by a
Flower Grid without an engine. Messages cross as protobuf bytes, as they do on a wire."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common import serde
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedllm.data.silos import load_federation
from fedllm.report.extract.keys import NodeKey
from fedllm.run.folder import RunFolder
from server.extracts import Extracts
from server.run import run_experiment

RUN_ID = 77
FIRST_NODE = 1000
Tamper = Callable[[Message, Message], Message | None]
"""``tamper(task, reply)`` gives the reply that arrives, None where none does."""


class LocalGrid(Grid):
    """Answers each message at once, in this process.

    Args:
        client_app: Flower's ClientApp.
        nodes: each node's own configuration, or the number of nodes that have none.
        tamper: may change or withhold replies.
        names: for which silo each node is registered, as in a deployment; none: as in a simulation, where
            nodes say themselves who they are.
    """

    def __init__(
        self,
        client_app: Any,
        nodes: int | Sequence[Mapping[str, str | int]],
        tamper: Tamper | None = None,
        names: Sequence[str] = (),
    ) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, 1
        if isinstance(nodes, int):
            nodes = [{"partition-id": i, "num-partitions": nodes} for i in range(nodes)]
        self.client_app = client_app
        self.tamper = tamper
        self.contexts = {
            FIRST_NODE + i: Context(
                run_id=RUN_ID,
                node_id=FIRST_NODE + i,
                node_config=dict(config),
                state=RecordDict(),
                run_config={},
            )
            for i, config in enumerate(nodes)
        }
        self.names = dict(zip(self.contexts, names, strict=bool(names)))
        self.replies: dict[str, Message] = {}
        self.sent = 0

    def set_run(self, run: Any) -> None:
        """Not used."""
        raise NotImplementedError

    @property
    def run(self) -> Any:
        """Not used."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not used."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes."""
        return list(self.contexts)

    def get_nodes(self) -> list[NodeInfo]:
        """Return all nodes, with the names that they are registered under."""
        found = [(node, self.names.get(node, "")) for node in self.contexts]
        keys = {name: f"key of {name}".encode() for _, name in found if name}
        return [
            NodeInfo(node_id=node, name=name, public_key=keys.get(name, b""))
            for node, name in found
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Answer each message; ids of the messages."""
        ids = []
        for message in messages:
            self.sent += 1
            task = over_the_wire(message, f"message-{self.sent}")
            ids.append(task.metadata.message_id)
            arrived: Message | None = self._reply(task)
            if self.tamper is not None and arrived is not None:
                arrived = self.tamper(task, arrived)
            if arrived is not None:
                self.replies[ids[-1]] = over_the_wire(arrived, f"reply-{self.sent}")
        return ids

    def answered(self, message: Message, message_id: str) -> Message:
        """Return the reply to a message, as it arrives."""
        reply = self._reply(over_the_wire(message, message_id))
        return over_the_wire(reply, message_id.replace("message", "reply"))

    def _reply(self, task: Message) -> Message:
        try:
            reply: Message = self.client_app(task, self.contexts[task.metadata.dst_node_id])
        except Exception as error:  # as Flower's engine does
            return Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=task)
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there."""
        return [self.replies.pop(name) for name in message_ids if name in self.replies]

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        """Not used."""
        raise NotImplementedError


class TurnGrid(LocalGrid):
    """Answers one message at each look for replies, so that a run shows its progress and can be stopped in between.

    Nothing runs at the same time: silos and server share the model's one copy. Replies have no time limit, since no
    machine can be lost.
    """

    in_turn = True

    def __init__(self, client_app: Any, nodes: int) -> None:
        super().__init__(client_app, nodes)
        self.waiting: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep the messages for later; ids of the messages."""
        ids: list[str] = []
        for message in messages:
            ids.append(f"message-{self.sent + 1 + len(ids)}")
            self.waiting[ids[-1]] = message
        self.sent += len(ids)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answer the oldest of these messages that has no answer yet; its reply."""
        asked = set(message_ids)
        for name in self.waiting:
            if name in asked:
                return [self.answered(self.waiting.pop(name), name)]
        return []


def over_the_wire(message: Message, message_id: str) -> Message:
    """Return the message as it arrives: through protobuf's bytes, with the id that an engine gives."""
    message.metadata.__dict__["_message_id"] = message_id
    data = serde.message_to_proto(message).SerializeToString()
    return serde.message_from_proto(ProtoMessage.FromString(data))


def federate(
    run: RunFolder,
    tamper: Tamper | None = None,
    stop: threading.Event | None = None,
    callbacks: Any = (),
    silo_files: Sequence[Path] = (),
    node_keys: Mapping[str, NodeKey] | None = None,
    memory: Path | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Run a run folder's experiment in this process, or resume it; return its status.

    Args:
        silo_files: silo configs, one node per config; none: the silos of the settings' data.
        node_keys: of each silo, as in a deployment: their signed extracts are verified and kept.
        memory: where the last heads of the silos' ledgers are kept across runs.
        notes: what else the run's record warns of.
    """
    from client.app import app

    count = len(load_federation(run.settings()).silos)
    own: list[dict[str, str | int]] = [{"silo-file": str(path)} for path in silo_files]
    grid = LocalGrid(app, own or count, tamper)
    return run_experiment(
        grid,
        run,
        stop=stop,
        expected_nodes=len(own) or count,
        callbacks=callbacks,
        evaluation_threads=run.settings().simulation.threads,
        extracts=None if node_keys is None else Extracts(run, node_keys, memory),
        notes=notes,
    )
