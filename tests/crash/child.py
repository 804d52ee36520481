"""The process that is killed: a real run over the in-process grid, whose receiving side is witnessed.

What was released is written down by whoever receives it, to a file that the run knows nothing of: one
line, one ``write`` in append mode, before the message is used. Killing a process loses nothing that
was written (only a loss of power would), so that this file holds every release that was received.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Message

import fedllm.adapter.export
import fedllm.report
from fedllm import messages as names
from fedllm.budget.release_id import params_digest
from fedllm.run.folder import RunFolder
from fedllm.settings.io import from_json
from simulations.in_process import federate

MODEL = "model"
"""The party under which a new global model is witnessed, where the server adds the noise."""


class Witness:
    """Writes down each message that the server, or with noise by the server the silos, receive.

    Args:
        path: the file, outside of the run's folder.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __call__(self, task: Message, reply: Message) -> Message:
        """Witness a task and its reply; the reply comes back as it is."""
        kind = task.metadata.message_type
        if kind not in ("train", "evaluate"):
            return reply
        content: Any = task.content
        config = content[names.CONFIG]
        server_round = int(config[names.ROUND])
        privacy = from_json(str(config[names.SETTINGS])).privacy
        if privacy.mode == "dp" and privacy.noise_by == "server" and kind == "train":
            if server_round > 1:  # what the silos get is the released model of the round before
                params = content[names.PARAMS].to_torch_state_dict()
                self._write(MODEL, kind, server_round - 1, params_digest(params))
            return reply
        if reply.has_error():
            return reply
        answer: Any = reply.content
        info = answer[names.INFO]
        if info[names.STATUS] != names.OK:
            return reply
        if kind == "train":
            digest = params_digest(answer[names.UPDATE].to_torch_state_dict())
        else:
            numbers = answer[names.METRICS]
            pair = f"{numbers[names.CORRECT]!r} {numbers[names.COUNT]!r}"
            digest = hashlib.sha256(pair.encode()).hexdigest()
        self._write(str(info[names.SILO]), kind, server_round, digest)
        return reply

    def _write(self, party: str, purpose: str, server_round: int, digest: str) -> None:
        line = json.dumps([party, purpose, server_round, digest]) + "\n"
        os.write(self._handle, line.encode())


def witnessed(path: Path) -> dict[tuple[str, str, int], set[str]]:
    """The distinct values that were received, by (party, purpose, round)."""
    found: dict[tuple[str, str, int], set[str]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            party, purpose, server_round, digest = json.loads(line)
            found.setdefault((party, purpose, server_round), set()).add(digest)
    return found


@dataclass
class Aim:
    """A kill at a step that makes something durable: ``os.fsync``, ``os.replace``, ``os.rename``, and
    SQLite's INSERT and COMMIT. Counts the steps; without ``number`` it does no more.

    Attributes:
        number: the step, from 1.
        when: ``before`` it, ``after`` it (SQLite's: as ``within``), or ``within``: ``delay`` seconds
            after it began.
    """

    number: int | None = None
    when: str = "before"
    delay: float = 0.0
    count: int = 0

    def install(self) -> None:
        """Watch the steps of this process."""
        self._now = threading.Event()
        if self.number is not None:
            threading.Thread(target=self._wait, daemon=True).start()
        for name in ("fsync", "replace", "rename"):
            setattr(os, name, self._watched(getattr(os, name)))
        connect = sqlite3.connect

        def connected(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            db = connect(*args, **kwargs)
            db.set_trace_callback(self._statement)
            return db

        setattr(sqlite3, "connect", connected)  # noqa: B010

    def _wait(self) -> None:
        self._now.wait()
        time.sleep(self.delay)
        kill_group()

    def _begin(self) -> bool:
        self.count += 1
        if self.count != self.number:
            return False
        if self.when == "before":
            kill_group()
        if self.when == "within":
            self._now.set()
        return True

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            chosen = self._begin()
            result = real(*args, **kwargs)
            if chosen and self.when == "after":
                kill_group()
            return result

        return step

    def _statement(self, text: str) -> None:
        if text.startswith(("INSERT INTO entries", "COMMIT")) and self._begin():
            self._now.set()


def kill_group() -> None:
    """kill -9 to this process and all that it started."""
    os.killpg(0, signal.SIGKILL)


def start(
    run: Path, witness: Path, log: Path, aim: Aim, sabotage: Callable[[], None] | None = None
) -> int:
    """Fork a process, in a group of its own, that goes on with a run; its process id.

    It exits with 0 when the run came to its end, and then writes the number of its durable steps to
    ``LOG.steps``. The adapter and the report, which follow the last round, are left out.

    Args:
        sabotage: called in the new process before the run: breaks something on purpose.
    """
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if sabotage is not None:
            sabotage()
        # What follows the last round only reads what is released, and takes seconds.
        for module, name in (
            (fedllm.adapter.export, "export_adapter"),
            (fedllm.report, "write_report"),
        ):
            setattr(module, name, lambda *args: None)
        watch = Witness(witness)
        aim.install()
        ended = federate(RunFolder.open(run), watch)
        Path(f"{log}.steps").write_text(str(aim.count), encoding="utf-8")
        status = 0 if ended == "finished" else 71
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)
