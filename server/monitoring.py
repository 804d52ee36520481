"""Observers of a run (metrics file, TensorBoard, live view). None of them changes the training."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedllm.metrics import SHOWN
from fedllm.run.folder import RunFolder


class Callback(Protocol):
    """Receives each record of a run: a mapping with ``kind``, ``round`` and numbers.

    Kinds: ``teacher`` (progress of its training on public text), ``start`` (names of the silos, their
    targets, rounds), ``warning``, ``round``, ``replies`` (failed and refused outside of training), ``silo``,
    ``evaluation``, ``end``. Every value is released or public.
    """

    def record(self, record: Mapping[str, Any]) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """Close after the end of the run, or after a failure."""
        ...


class MetricsFile:
    """Appends the records to the run folder's ``metrics.jsonl``."""

    KINDS = ("round", "silo", "evaluation", "replies", "warning")

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def record(self, record: Mapping[str, Any]) -> None:
        if record["kind"] in self.KINDS:
            self.run.append_metrics(dict(record))

    def close(self) -> None:
        pass


class LogProgress:
    """Writes each record as a line of the log ``fedllm``, where no live view shows it."""

    def record(self, record: Mapping[str, Any]) -> None:
        log = logging.getLogger("fedllm")
        kind, where = record["kind"], f"round {record['round']}"
        if kind == "warning":
            log.warning(record["message"])
        elif kind == "start":
            last = (
                f"of {record['rounds']}, after round {record['round']}" if record["round"] else ""
            )
            log.info("silos: %s; rounds: %s %s", ", ".join(record["silos"]), record["rounds"], last)
        elif kind == "round":
            asked = record["replied"] + len(record["failed"]) + len(record["refused"])
            asked += len(record["left"])
            seconds = record.get("seconds", math.nan)
            log.info("%s: %d of %d silos, %.1f s", where, record["replied"], asked, seconds)
            for group in ("failed", "refused", "left"):
                for item in record[group]:
                    log.warning("%s: %s %s: %s", where, item["silo"], group, item["reason"])
        elif kind == "replies":
            for group in ("failed", "refused"):
                for item in record[group]:
                    what = f"{item['silo']} {group} in {record['what']}"
                    log.warning("%s: %s: %s", where, what, item["reason"])
        elif kind == "evaluation":
            log.info("%s: %s (judged by the %s)", where, _numbers(record), record["where"])
        elif kind == "silo":
            log.info(
                "%s: %s epsilon %.4f of the releases so far",
                where,
                record["silo"],
                record["epsilon"],
            )
        elif kind == "end":
            log.info("%s after %s %s", record["status"], where, record["message"])

    def close(self) -> None:
        pass


def _numbers(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {record[name]:.4f}" for name in SHOWN if name in record)


class TensorBoard:
    """Writes numbers as TensorBoard events; after a resume, later events replace earlier ones."""

    def __init__(self, folder: Path, first_round: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_round)

    def record(self, record: Mapping[str, Any]) -> None:
        kind = record["kind"]
        if kind not in MetricsFile.KINDS or kind == "warning":
            return
        group = {"silo": f"silo/{record.get('silo')}", "evaluation": f"eval/{record.get('where')}"}
        for name, value in record.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and name not in ("round", "time"):
                self.writer.add_scalar(f"{group.get(kind, kind)}/{name}", value, record["round"])

    def close(self) -> None:
        self.writer.close()


class Callbacks:
    """Several callbacks as one.

    Logs never decide: a callback that cannot write its file is a warning, and the round that is paid for counts.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)

    def record(self, record: Mapping[str, Any]) -> None:
        for callback in self.callbacks:
            try:
                callback.record(record)
            except OSError as error:
                _warn(callback, error)

    def close(self) -> None:
        for callback in self.callbacks:
            try:
                callback.close()
            except OSError as error:
                _warn(callback, error)


def _warn(callback: Callback, error: OSError) -> None:
    logging.getLogger("fedllm").warning("%s cannot write: %s", type(callback).__name__, error)
