"""State of a process across tasks: the silos' workers, their open ledgers, its threads.

A silo's data are tokenised, and its noise calibrated, once in a process; the frozen model is shared by all silos
(:func:`fedllm.training.tunable.shared_tunable`).
"""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Any

import torch

from fedllm.budget.local_policy import LocalPolicy
from fedllm.data.silos import Silo
from fedllm.kept import Kept
from fedllm.models.backbone import still_kept, was_given_up
from fedllm.settings.experiment import Settings
from fedllm.silo.identity import Identity
from fedllm.silo.silo import SiloWorker
from privacy.ledger.ledger import Ledger

MOST_RUNS = 4
"""Runs of one silo whose workers a process keeps."""
_workers: dict[tuple[str, str, int], Kept[tuple[Any, ...], SiloWorker]] = {}
_ledgers: weakref.WeakValueDictionary[tuple[int, ...], Ledger] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def shared_worker(
    settings: Settings,
    silo: Silo,
    *,
    run: str,
    ledger: Path,
    log: Path | None,
    own: LocalPolicy | None = None,
    identity: Identity | None = None,
    heads: tuple[Path, ...] = (),
) -> SiloWorker:
    """Return the worker of this silo in this run, made once while it is kept.

    Of a silo at most :data:`MOST_RUNS` are kept (a run with other settings is another), and none whose model the
    process does not keep (:func:`fedllm.models.backbone.shared_backbone`). One that is given up while it works finishes its task:
    only its place here is taken. What it had is made again with the run's next task, from the ledger, where the
    run's noise and plan are. An open ledger is closed when the last worker that uses it has gone.

    Args:
        identity: the silo's own key and those of its peers; None in a simulation.
        heads: files with heads of the ledger, next to the one that lies next to it (:mod:`privacy.ledger.heads`).
    """
    own_key = (silo.name, str(ledger), os.getpid())
    key = (run, settings.model_dump_json(), own, identity)
    with _lock:
        if own_key not in _workers:
            _workers[own_key] = Kept(MOST_RUNS)
        kept = _workers[own_key]

    def make() -> SiloWorker:
        opened = shared_ledger(ledger, heads)
        return SiloWorker(
            settings, silo, run=run, ledger=opened, log=log, own=own, identity=identity
        )

    kept.drop(lambda worker: was_given_up(worker.tunable.backbone))
    known = key in kept
    found = kept.get(key, make)
    still_kept(found.tunable.backbone)
    if not known:  # loading its model may have taken another's place
        kept.drop(lambda worker: worker is not found and was_given_up(worker.tunable.backbone))
    return found


def shared_ledger(path: Path, kept: tuple[Path, ...] = ()) -> Ledger:
    """Return the open ledger of this file: one in a process, however many silos share it."""
    with _lock:
        if path.exists():
            found = _ledgers.get(_file_key(path))
            if found is not None:
                return found
        ledger = Ledger(path, kept=kept)
        _ledgers[_file_key(path)] = ledger
        return ledger


def _file_key(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, os.getpid()


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    able = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if able else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Number of CPU threads of this process (the order of sums, and so rounding, depends on it)."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
