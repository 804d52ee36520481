"""Faults of a node's own processes, which read this file as they start (PYTHONPATH).

What goes wrong is said by files in the folder FEDLLM_TEST_FAULTS:

* ``hold-before-N``, ``hold-after-N``: the task of round N is held before the app sees it, or before its
  answer leaves, while the file is there; ``held-before-N`` tells that it is.
* ``repeat``: the app's first answer is given again to every later task.
* ``twice``: each answer is pushed to the server, and pushed again under another id; ``pushed`` has a line
  for each second push: how many of its parts the server still wanted.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from simulations.benchmark.import_hook import after_import

FOLDER = Path(os.environ["FEDLLM_TEST_FAULTS"])


def hold(moment: str, server_round: int) -> None:
    gate = FOLDER / f"hold-{moment}-{server_round}"
    if gate.exists():
        (FOLDER / f"held-{moment}-{server_round}").touch()
        while gate.exists():
            time.sleep(0.05)


def repeated(reply: Any, message: Any) -> Any:
    from flwr.app import Message
    from flwr.common import serde
    from flwr.proto.message_pb2 import Message as ProtoMessage

    first = FOLDER / "first-answer"
    if not first.exists():
        first.write_bytes(serde.message_to_proto(reply).SerializeToString())
        return reply
    if not (FOLDER / "repeat").exists():
        return reply
    old = serde.message_from_proto(ProtoMessage.FromString(first.read_bytes()))
    return Message(old.content, reply_to=message)


def change_app(module: Any) -> None:
    answer = module.ClientApp.__call__

    def call(self: Any, message: Any, context: Any) -> Any:
        if not message.metadata.message_type.startswith("train"):
            return answer(self, message, context)
        server_round = int(message.content["config"]["round"])
        hold("before", server_round)
        reply = repeated(answer(self, message, context), message)
        hold("after", server_round)
        return reply

    module.ClientApp.__call__ = call


def change_connection(module: Any) -> None:
    push = module.FleetHttpClient.PushMessages

    def call(self: Any, request: Any) -> Any:
        answer = push(self, request)
        if (FOLDER / "twice").exists():
            other = type(request)()
            other.CopyFrom(request)
            other_id = request.messages_list[0].metadata.message_id[::-1]
            other.messages_list[0].metadata.message_id = other_id
            other.message_object_trees[0].object_id = other_id
            try:
                said = str(len(push(self, other).objects_to_push))
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            with (FOLDER / "pushed").open("a", encoding="utf-8") as file:
                file.write(" ".join(said.split()) + "\n")
        return answer

    module.FleetHttpClient.PushMessages = call


after_import("flwr.clientapp.client_app", change_app)
after_import("flwr.supernode.fleet_http_client", change_connection)
