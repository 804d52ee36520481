"""What a process has once, whichever tasks it is given: the silos' workers, their open ledgers, its threads.

A silo's data are tokenised, and its noise calibrated, once in a process; the frozen model is shared by all silos
(:func:`fedllm.tunable.shared_tunable`).
"""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Any

import torch

from fedllm.own_bounds import OwnBounds
from fedllm.settings import Settings
from fedllm.silo_worker import SiloWorker
from fedllm.silos import Silo
from privacy.ledger import Ledger

_workers: dict[tuple[Any, ...], SiloWorker] = {}
_ledgers: weakref.WeakValueDictionary[tuple[int, ...], Ledger] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def shared_worker(
    settings: Settings,
    silo: Silo,
    *,
    run: str,
    ledger: Path,
    log: Path | None,
    own: OwnBounds | None = None,
) -> SiloWorker:
    """The worker of this silo in this run, once per process."""
    key = (run, silo.name, settings.model_dump_json(), str(ledger), own, os.getpid())
    with _lock:
        found = _workers.get(key)
    if found is None:
        found = SiloWorker(settings, silo, run=run, ledger=shared_ledger(ledger), log=log, own=own)
        with _lock:
            _workers[key] = found
    return found


def shared_ledger(path: Path) -> Ledger:
    """The open ledger of this file: one in a process, however many silos share it."""
    with _lock:
        if path.exists():
            found = _ledgers.get(_file_key(path))
            if found is not None:
                return found
        ledger = Ledger(path)
        _ledgers[_file_key(path)] = ledger
        return ledger


def _file_key(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, os.getpid()


def cores() -> int:
    """Number of CPU cores that this process may use."""
    able = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if able else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Number of CPU threads of this process (the order of sums, and so rounding, depends on it)."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
