"""Repeated texts, which weaken what example-level privacy promises.

Example-level privacy hides one record. What the removal of all k copies of one costs is larger, and known
(:mod:`privacy.copies`). So repeats are counted where the data are: a silo's in its own log, a simulation's in
warnings of the command (:mod:`fedllm.data.repeated_records`). They may be dropped before training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedllm.data.formats.records import Record, TextDataset, normalise_text, require_columns


@dataclass(frozen=True)
class DuplicateCount:
    """``examples`` records hold ``distinct`` texts; ``groups`` texts occur more than once, the most
    frequent one ``largest`` times."""

    examples: int
    distinct: int
    groups: int
    largest: int

    @property
    def surplus(self) -> int:
        """Records beyond the first of each text: those that :func:`drop_duplicates` drops."""
        return self.examples - self.distinct


def count_duplicates(
    dataset: TextDataset,
    columns: Sequence[str] = ("text",),
    normalise: Callable[[str], str] = normalise_text,
) -> DuplicateCount:
    """Count records whose ``columns`` are equal after ``normalise``. Raises DataError for a missing
    column."""
    sizes = [len(rows) for rows in _groups(dataset, columns, normalise).values()]
    return DuplicateCount(
        examples=len(dataset),
        distinct=len(sizes),
        groups=sum(size > 1 for size in sizes),
        largest=max(sizes, default=0),
    )


def drop_duplicates(
    dataset: TextDataset,
    columns: Sequence[str] = ("text",),
    normalise: Callable[[str], str] = normalise_text,
) -> TextDataset:
    """Keep one record of each group with equal ``columns`` after ``normalise``, in the data's order.

    Copies can carry different labels. The one kept is that with the smallest hash of the whole
    record, so the set kept depends neither on the order of the data nor on a seed.

    Privacy: a record added before this step adds one record after it, changes none, or *replaces*
    one (twice the change of zero-out). The guarantee is therefore to be stated for the
    records after this step. Raises DataError for a missing column.
    """
    kept = sorted(
        min(rows, key=lambda row: (_record_hash(dataset.records[row]), row))
        for rows in _groups(dataset, columns, normalise).values()
    )
    return dataset.select(kept)


def record_keys(
    dataset: TextDataset,
    columns: Sequence[str],
    normalise: Callable[[str], str] = normalise_text,
) -> list[tuple[str, ...]]:
    """Return each record's key for comparison: its ``columns`` after ``normalise``. Raises DataError for a missing
    column."""
    require_columns(dataset, columns)
    return [
        tuple(_key(record[column], normalise) for column in columns) for record in dataset.records
    ]


def _groups(
    dataset: TextDataset, columns: Sequence[str], normalise: Callable[[str], str]
) -> dict[tuple[str, ...], list[int]]:
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, key in enumerate(record_keys(dataset, columns, normalise)):
        groups.setdefault(key, []).append(row)
    return groups


def _key(value: Any, normalise: Callable[[str], str]) -> str:
    return normalise(value) if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _record_hash(record: Record) -> bytes:
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
