"""Times in processes that others start, which read this file as they start (PYTHONPATH).

Each process appends JSON lines to a file of its own in the folder FEDLLM_PROBE: what, when it began and ended
(seconds since 1970, of this machine's clock), and for which round. See
:mod:`simulations.benchmark.deployment_rounds` and :mod:`simulations.benchmark.deployment_cost`.

With FEDLLM_PROBE_FRESH a node's app has a new process for each task of an odd round, and the one of the
round before for those of an even one.
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
            before(*args, **kwargs)
        result = inner(*args, **kwargs)
        after(began, result, *args, **kwargs)
        return result

    setattr(owner, name, call)


current = {"round": 0}
imported: dict[str, float] = {}


def change_app(module: Any) -> None:
    def before(app: Any, message: Any, context: Any) -> None:
        if message.metadata.message_type == TRAIN:
            current["round"] = int(message.content["config"]["round"])

    def after(began: float, reply: Any, app: Any, message: Any, context: Any) -> None:
        if message.metadata.message_type == TRAIN:
            silo = str(reply.content["info"]["silo"])
            times = {"started": STARTED, "imported": imported.get("at", STARTED)}
            tell("app", began, current["round"], silo=silo, **times)

    around(module.ClientApp, "__call__", before, after)


def change_training(module: Any) -> None:
    around(
        module,
        "train_locally",
        None,
        lambda began, *_, **__: tell("train", began, current["round"]),
    )


class TimedGrid:
    """A grid whose sending has a clock."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid
        self.pull_messages = grid.pull_messages

    def push_messages(self, messages: Any) -> Any:
        began = time.time()
        ids = list(self._grid.push_messages(messages))
        tell("send", began, int(messages[0].metadata.group_id))
        return ids


def change_exchange(module: Any) -> None:
    inner = module.exchange

    def call(grid: Any, messages: Any, *, on_reply: Any = None, **options: Any) -> Any:
        if not messages or messages[0].metadata.message_type != TRAIN:
            return inner(grid, messages, on_reply=on_reply, **options)
        server_round = int(messages[0].metadata.group_id)

        def came(reply: Any) -> None:
            if not reply.has_error():
                silo = str(reply.content["info"]["silo"])
                tell("arrival", time.time(), server_round, silo=silo)
            if on_reply is not None:
                on_reply(reply)

        began = time.time()
        replies = inner(TimedGrid(grid), messages, on_reply=came, **options)
        tell("exchange", began, server_round)
        return replies

    module.exchange = call


def change_task(module: Any) -> None:
    def after(began: float, result: Any, *_: Any) -> None:
        metadata = result[0].metadata
        current["round"] = int(metadata.group_id) if metadata.message_type == TRAIN else 0
        tell("task", began, current["round"])

    around(module, "pull_input", None, after)


def change_process(module: Any) -> None:
    worker = module.WorkerProcess
    around(worker, "__init__", None, lambda began, *_, **__: tell("spawn", began, current["round"]))
    if "FEDLLM_PROBE_FRESH" not in os.environ:
        return

    def end_after_even_rounds(began: float, result: Any, process: Any, *_: Any) -> None:
        if current["round"] and current["round"] % 2 == 0:
            process.end()

    around(worker, "answer", None, end_after_even_rounds)


def change_tunable(module: Any) -> None:
    around(
        module,
        "shared_tunable",
        None,
        lambda began, *_, **__: tell("model", began, current["round"]),
    )


def change_client(module: Any) -> None:
    imported["at"] = time.time()


def change_node(module: Any) -> None:
    around(module, "open_silo", None, lambda began, *_, **__: tell("open", began, current["round"]))


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
after_import("client.app", change_client)
after_import("client.node", change_node)
after_import("client.worker_process", change_process)
after_import("fedllm.local_training", change_training)
after_import("fedllm.tunable", change_tunable)
after_import("server.exchange", change_exchange)
after_import("flwr.supernode.fleet_http_client", change_connection)
after_import("client.task_input", change_task)
