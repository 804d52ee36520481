"""Faults of a node's own processes, which read this file as they start (PYTHONPATH).

What goes wrong is said by files in the folder FEDLLM_TEST_FAULTS:

* ``hold-before-N``, ``hold-after-N``: the task of round N is held before the app sees it, or before its
  answer leaves, while the file is there; ``held-before-N`` tells that it is.
* ``repeat``: the app's first answer is given again to every later task.
* ``forge-query``, ``forge-N``: the answer to the run's first question, or of round N, is the forgery of it that
  the file names (:mod:`forged_replies`); ``speak for NAME`` only changes whose answer it says that it is.
* ``withhold``: answers are announced to the server, and nothing of them is uploaded.
* ``tasks`` has a line for each task that the node's app was given: its kind.
* ``twice``: each answer is pushed to the server, and pushed again under another id; ``pushed`` has a line
  for each second push: how many of its parts the server still wanted.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from simulations.benchmarks.deployment_rounds import after_import

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


def forged(reply: Any, fault: str) -> Any:
    """The reply, or the forgery of it that a file names."""
    file = FOLDER / f"forge-{fault}"
    if not file.exists():
        return reply
    name = file.read_text(encoding="utf-8")
    if name.startswith("speak for "):
        reply.content["info"]["silo"] = name.removeprefix("speak for ")
        return reply
    sys.path.append(str(Path(__file__).parents[1]))
    from forged_replies import forged as forgeries

    content = next(content for known, content in forgeries(reply.content) if known == name)
    reply.__dict__["_content"] = content
    return reply


def change_app(module: Any) -> None:
    answer = module.ClientApp.__call__

    def call(self: Any, message: Any, context: Any) -> Any:
        kind = message.metadata.message_type
        with (FOLDER / "tasks").open("a", encoding="utf-8") as file:
            file.write(f"{kind}\n")
        if not kind.startswith("train"):
            return forged(answer(self, message, context), kind)
        server_round = int(message.content["config"]["round"])
        hold("before", server_round)
        reply = repeated(answer(self, message, context), message)
        hold("after", server_round)
        return forged(reply, str(server_round))

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
    upload = module.FleetHttpClient.PushObject

    def keep(self: Any, request: Any) -> Any:
        if (FOLDER / "withhold").exists():
            from flwr.proto.message_pb2 import PushObjectResponse

            return PushObjectResponse(stored=True)
        return upload(self, request)

    module.FleetHttpClient.PushObject = keep


after_import("flwr.clientapp.client_app", change_app)
after_import("flwr.supernode.fleet_http_client", change_connection)
