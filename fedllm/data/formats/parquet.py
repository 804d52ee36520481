"""Parquet files, by pyarrow, which is needed for them alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedllm.data.formats.records import DataError, Record, RowError


def parquet_rows(
    file: Path, columns: Sequence[str] | None
) -> Iterator[tuple[int, Record | RowError]]:
    """Yield (number from 1, record or what is wrong with it) for every row; of ``columns`` alone, where they are given.

    A value that is none (a string of bytes that are no UTF-8, a date beyond the calendar) is its own row's fault.

    Raises:
        DataError: pyarrow is not installed; the file is missing or damaged; it has no such column.
    """
    table = _table(file, columns)
    names = table.column_names
    values = [_values(column) for column in table.columns]
    for number, row in enumerate(zip(*values, strict=True), start=1):
        bad = next((i for i, value in enumerate(row) if isinstance(value, _Unreadable)), None)
        if bad is None:
            yield number, dict(zip(names, row, strict=True))
            continue
        yield (
            number,
            RowError(
                f"Expected values that can be read in {file}, got none in column '{names[bad]}' of row "
                f"{number} ({row[bad].reason})"
            ),
        )


class _Unreadable:
    """Stands for a value of a column that cannot be read."""

    def __init__(self, error: Exception) -> None:
        self.reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _values(column: Any) -> list[Any]:
    """Return a column's values; one by one where they cannot be read together."""
    try:
        values: list[Any] = column.to_pylist()
    except Exception:  # pyarrow's own kinds, and Python's of what a value becomes
        return [_value(value) for value in column]
    return values


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:
        return _Unreadable(error)


def _table(file: Path, columns: Sequence[str] | None) -> Any:
    try:
        import pyarrow.parquet as reader
    except ImportError as error:
        raise DataError(
            f"Expected pyarrow to read the Parquet file {file}, got none installed; pip install pyarrow"
        ) from error
    try:
        with reader.ParquetFile(file) as opened:
            names = list(opened.schema_arrow.names)
            missing = [column for column in columns or () if column not in names]
            if not missing:
                wanted = None if columns is None else list(dict.fromkeys(columns))
                return opened.read(columns=wanted)
    except Exception as error:  # pyarrow's own kinds; OSError without a number for damaged pages
        what = "readable" if getattr(error, "errno", None) is not None else "whole"
        reason = str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"Expected a {what} Parquet file, got {file} ({reason})") from error
    raise DataError(
        f"Expected column '{missing[0]}' in {file}, got columns {', '.join(names) or '(none)'}"
    )
