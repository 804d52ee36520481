"""Times in processes that others start, which read this file as they start (PYTHONPATH).

Each process appends JSON lines to a file of its own in the folder FEDLLM_PROBE: what, when it began and ended
(seconds since 1970, of this machine's clock), and for which round. See
:mod:`simulations.benchmark.deployment_rounds`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simulations.benchmark.import_hook import after_import

FOLDER = Path(os.environ["FEDLLM_PROBE"])
STARTED = time.time()
TRAIN = "train"


def tell(what: str, began: float, server_round: int, **more: Any) -> None:
    record = {"what": what, "began": began, "ended": time.time(), "round": server_round, **more}
    with (FOLDER / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def around(owner: Any, name: str, before: Callable[..., None] | None, after: Any) -> None:
    """Put a clock around a function: ``after(began, result, *arguments)`` tells."""
    inner = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.time()
        if before is not None:
            before(*args)
        result = inner(*args, **kwargs)
        after(began, result, *args)
        return result

    setattr(owner, name, call)


current = {"round": 0}


def change_app(module: Any) -> None:
    def before(app: Any, message: Any, context: Any) -> None:
        if message.metadata.message_type == TRAIN:
            current["round"] = int(message.content["config"]["round"])

    def after(began: float, reply: Any, app: Any, message: Any, context: Any) -> None:
        if message.metadata.message_type == TRAIN:
            silo = str(reply.content["info"]["silo"])
            tell("app", began, current["round"], silo=silo, started=STARTED)

    around(module.ClientApp, "__call__", before, after)


def change_training(module: Any) -> None:
    around(module, "train_locally", None, lambda began, *_: tell("train", began, current["round"]))


def change_exchange(module: Any) -> None:
    def after(began: float, replies: Any, grid: Any, messages: Any) -> None:
        if messages and messages[0].metadata.message_type == TRAIN:
            tell("exchange", began, int(messages[0].metadata.group_id))

    around(module, "exchange", None, after)


def change_connection(module: Any) -> None:
    client = module.FleetHttpClient

    def of(message: Any) -> int:
        train = message.metadata.message_type == TRAIN
        return int(message.metadata.group_id) if train else 0

    def pulled(began: float, response: Any, *_: Any) -> None:
        if response.messages_list:
            current["round"] = of(response.messages_list[0])
            tell("pull", began, current["round"])

    def pushed(began: float, response: Any, connection: Any, request: Any) -> None:
        tell("push", began, of(request.messages_list[0]))

    around(client, "PullMessages", None, pulled)
    around(client, "PushMessages", None, pushed)
    for name, what in (
        ("PullObject", "pull"),
        ("ConfirmMessageReceived", "pull"),
        ("PushObject", "push"),
    ):
        around(client, name, None, lambda began, *_, what=what: tell(what, began, current["round"]))


after_import("flwr.clientapp.client_app", change_app)
after_import("fedllm.local_training", change_training)
after_import("server.exchange", change_exchange)
after_import("flwr.supernode.fleet_http_client", change_connection)
