"""What watches a run: metrics file, TensorBoard, live view. None of them changes the training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedllm.run_folder import RunFolder


class Callback(Protocol):
    """Receives each record of a run: a mapping with ``kind``, ``round`` and numbers.

    Kinds: ``teacher`` (progress of its training on public text), ``start`` (names of the silos, their
    targets, rounds), ``warning``, ``round``, ``silo``, ``evaluation``, ``end``. Every value is released or public.
    """

    def record(self, record: Mapping[str, Any]) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """The run is over (also after a failure)."""
        ...


class MetricsFile:
    """Appends the records to the run folder's ``metrics.jsonl``."""

    KINDS = ("round", "silo", "evaluation")

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def record(self, record: Mapping[str, Any]) -> None:
        if record["kind"] in self.KINDS:
            self.run.append_metrics(dict(record))

    def close(self) -> None:
        pass


class LogWarnings:
    """Writes warnings to the log, where no live view shows them."""

    def record(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "warning":
            logging.getLogger("fedllm").warning(record["message"])

    def close(self) -> None:
        pass


class TensorBoard:
    """Writes numbers as TensorBoard events; after a resume, later events replace earlier ones."""

    def __init__(self, folder: Path, first_round: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_round)

    def record(self, record: Mapping[str, Any]) -> None:
        kind = record["kind"]
        if kind not in MetricsFile.KINDS:
            return
        group = {"silo": f"silo/{record.get('silo')}", "evaluation": f"eval/{record.get('where')}"}
        for name, value in record.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and name not in ("round", "time"):
                self.writer.add_scalar(f"{group.get(kind, kind)}/{name}", value, record["round"])

    def close(self) -> None:
        self.writer.close()


class Callbacks:
    """Several callbacks as one."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)

    def record(self, record: Mapping[str, Any]) -> None:
        for callback in self.callbacks:
            callback.record(record)

    def close(self) -> None:
        for callback in self.callbacks:
            callback.close()
