"""Find unusable rows when data are opened, before anything is written to the ledger.

What is found here cannot fail later, in a step that samples it. Each row is judged by itself.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedllm.data.formats.records import BadRows, DataError, Record, TextDataset, require_columns
from fedllm.data.labels import class_text
from fedllm.data.record_forms import row_fault, text_fault
from fedllm.settings.kinds import RecordColumns

log = logging.getLogger("fedllm.silo")


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
    first = ", ".join(dataset.place(row) for row in list(faults)[:5])
    found = (
        f"{len(faults)} of {len(dataset)} records of {dataset.name} cannot be used ({kinds}); the "
        f"first: {first}"
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


def checked(dataset: TextDataset, columns: RecordColumns, rule: BadRows) -> TextDataset:
    """Return the rows that :func:`fedllm.data.record_forms.row_fault` finds no fault with; see :func:`usable_rows`."""
    require_columns(dataset, columns.names)
    return usable_rows(dataset, lambda record: row_fault(record, columns), rule)
