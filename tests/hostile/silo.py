"""A silo with its own config and the tiny model, asked in this process, with what each task leaves behind."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from fedllm import messages as names
from privacy.ledger.ledger import Ledger
from simulations.benchmarks.support import tiny
from simulations.in_process import over_the_wire

REFUSED, ANSWERED, SPENT, CRASHED = (
    "refused before spending",
    "answered",
    "spent, then failed",
    "crashed",
)
KEPT_MEMORY = 48 * 2**20
"""Bytes by which the process may have grown once all tasks of a kind were refused, hundreds of them of up to 20 MB."""
KEPT_DISK = 256 * 2**10
"""Bytes that one refused task may leave on the silo's disk, at most (lines of a log)."""

Build = Callable[["HostedSilo"], Message]


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    Attributes:
        verdict: one of the four words above.
        rows: new rows in the ledger.
        reason: what the server was told.
        memory: bytes by which the process grew, what waits to be collected among them.
        disk: bytes by which the silo's folder grew, its ledger left out.
    """

    verdict: str
    rows: int
    reason: str
    memory: int
    disk: int


class HostedSilo:
    """The silo `clinic` in a folder of its own.

    Args:
        folder: to be made.
        backbone: folder of a tiny encoder.
        data: a JSONL file.
        limits: of the silo config.
    """

    def __init__(self, folder: Path, backbone: Path, data: Path, **limits: Any) -> None:
        folder.mkdir(parents=True)
        self.folder, self.backbone, self.data = folder, backbone, data
        self.runs = self._counted = 0
        self._seen: list[tuple[str, int, int]] = []
        self.made: dict[Any, Any] = {}
        tree = {
            "name": "clinic",
            "cache": "cache",
            "data": {"path": str(data), "labels": list(tiny.LABELS), "holdout": 0.2},
            "budget": {"epsilon": 1e7, "delta": 1e-5, "accountant": "rdp"},
            "limits": {
                "rounds": 5,
                "local_steps": 4,
                "sampling_rate": 0.5,
                "noise_multiplier": 0.5,
                "randomness": ["os", "seeded"],
                "quantities": ["update", "size", "evaluation", "statistics", "layer-scores"],
                "codecs": ["none", "fp16", "top-k", "random-projection", "linear", "autoencoder"],
                "models": [str(backbone)],
                **limits,
            },
            "model": {"device": "cpu"},
        }
        (folder / "silo.toml").write_text(tomli_w.dumps(tree), encoding="utf-8")
        self.context = Context(1, 5, {"silo-file": str(folder / "silo.toml")}, RecordDict(), {})
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 5

    def new_run(self) -> str:
        """The id of another run."""
        self.runs += 1
        return f"run-{self.runs}"

    def rows(self) -> int:
        """Rows in the ledger; 0 where there is none. Counted anew where a file of it has changed."""
        path = self.folder / "ledger.sqlite"
        seen = [
            (file.name, file.stat().st_mtime_ns, file.stat().st_size)
            for file in sorted(self.folder.glob("ledger.sqlite*"))
            if not file.name.endswith("-shm")
        ]
        if not path.exists() or seen == self._seen:
            return self._counted
        with Ledger(path, read_only=True) as ledger:
            self._counted = len(ledger.entries())
        self._seen = seen
        return self._counted

    def disk(self) -> int:
        """Bytes of all files of the silo but the ledger's."""
        files = [f for f in self.folder.rglob("*") if f.is_file() and "ledger" not in f.name]
        return sum(file.stat().st_size for file in files)

    def ask(self, build: Build) -> Outcome:
        """Send one task; what became of it."""
        message = over_the_wire(build(self), f"message-{self.runs}")
        rows, disk, memory = self.rows(), self.disk(), resident()
        try:
            content = app(message, self.context).content
        except Exception as error:
            return Outcome(CRASHED, self.rows() - rows, f"{type(error).__name__}: {error}", 0, 0)
        finally:
            del message
        info = content.config_records[names.INFO]
        status, reason = str(info[names.STATUS]), str(info.get(names.REASON, ""))
        del content, info
        new = self.rows() - rows
        if status == names.OK:
            verdict = ANSWERED
        else:
            verdict = SPENT if new else REFUSED
        return Outcome(verdict, new, reason, resident() - memory, self.disk() - disk)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep refusals, each of which a silo logs, off the screen; restore the log's level at the end."""
    log = logging.getLogger("fedllm")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def resident(collected: bool = False) -> int:
    """Resident bytes of this process; ``collected``: once what is free was given back (takes half a second)."""
    if collected:
        gc.collect()
        with contextlib.suppress(OSError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
