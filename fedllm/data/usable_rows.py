"""Find unusable rows when data are opened, before anything is written to the ledger.

What is found here cannot fail later, in a step that samples it. Each row is judged by itself.
"""

from __future__ import annotations

import logging
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fedllm.data.formats.records import BadRows, DataError, Record, TextDataset, require_columns
from fedllm.data.labels import class_place, class_text

log = logging.getLogger("fedllm.silo")


def text_fault(value: Any) -> str | None:
    """Return the fault of a text, or None."""
    if value is None:
        return "no text (null)"
    if not isinstance(value, str):
        return f"{type(value).__name__} in place of text"
    if not value.strip():
        return "blank text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "half a character (a lone surrogate), or bytes that are no text in data.encoding"
    return None


def label_fault(value: Any, labels: Sequence[str]) -> str | None:
    """Return the fault of a class, or None."""
    if class_text(value) is None:
        return "no class (null)" if value is None else f"{type(value).__name__} in place of a class"
    if class_place(value, labels) is None:
        return f"the class {reprlib.repr(value)}, which is not among {', '.join(labels)}"
    return None


def target_fault(value: Any) -> str | None:
    """Return the fault of a target text, or of a list of alternative texts; None if there is none."""
    if not isinstance(value, list | tuple):
        return text_fault(value)
    faults = [text_fault(each) for each in value] or ["no text"]
    return next(filter(None, faults), None)


def row_fault(
    record: Record, text: Sequence[str], target: str, labels: Sequence[str]
) -> str | None:
    """Return the fault of a record with its column's name, or None.

    Args:
        text, target: columns.
        labels: classes; empty where the target is free text.
    """
    for column in (*text, target):
        if column not in record:
            return f"no column {column!r}"
    for column in text:
        fault = text_fault(record[column])
        if fault is not None:
            return f"column {column!r}: {fault}"
    value = record[target]
    fault = label_fault(value, labels) if labels else target_fault(value)
    return None if fault is None else f"column {target!r}: {fault}"


def division_fault(value: Any) -> str | None:
    """Return the fault of a value that assigns a record to a silo, or None."""
    return "no silo (null)" if class_text(value) is None else text_fault(class_text(value))


def usable_rows(
    dataset: TextDataset,
    fault: Callable[[Record], str | None],
    rule: BadRows,
) -> TextDataset:
    """Return the rows without a fault; the data set itself where all are.

    Args:
        fault: of one record, or None; a function of this record alone.
        rule: ``refuse``: any fault refuses the data set. ``drop``: rows with a fault are left out, and
            their number is in the log and in ``TextDataset.left_out``.

    Raises:
        DataError: a fault with ``refuse``, or no row is left; the first rows are named.
    """
    faults = {row: found for row, r in enumerate(dataset) if (found := fault(r)) is not None}
    if not faults:
        return dataset
    kinds = "; ".join(f"{count} of: {kind}" for kind, count in Counter(faults.values()).items())
    first = ", ".join(str(row) for row in list(faults)[:5])
    found = (
        f"{len(faults)} of {len(dataset)} records of {dataset.name} cannot be used ({kinds}); the "
        f"first, counted from 0: {first}"
    )
    if rule == "refuse":
        raise DataError(
            f"{found}. Mend or remove them, or leave them out by data.bad_rows=drop (now refuse)"
        )
    kept = [row for row in range(len(dataset)) if row not in faults]
    if not kept:
        raise DataError(f"Expected records that can be used, got none: {found}")
    log.warning("left out: %s", found)
    return replace(dataset.select(kept), left_out=(*dataset.left_out, found))


def checked(
    dataset: TextDataset,
    text: Sequence[str],
    target: str,
    labels: Sequence[str],
    rule: BadRows,
) -> TextDataset:
    """Return the rows that :func:`row_fault` finds no fault with; see :func:`usable_rows`."""
    require_columns(dataset, (*text, target))
    return usable_rows(dataset, lambda r: row_fault(r, text, target, labels), rule)
