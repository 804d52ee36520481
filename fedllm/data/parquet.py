"""Parquet files, by pyarrow, which is needed for them alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedllm.data.records import DataError, Record


def parquet_records(file: Path, columns: Sequence[str] | None) -> list[Record]:
    """Read a Parquet file's rows; of ``columns`` alone, where they are given.

    Raises:
        DataError: pyarrow is not installed; the file is missing or damaged; it has no such column.
    """
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
                records: list[Any] = opened.read(columns=wanted).to_pylist()
                return records
    except Exception as error:  # pyarrow's own kinds; OSError without a number for damaged pages
        what = "readable" if getattr(error, "errno", None) is not None else "whole"
        reason = str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"Expected a {what} Parquet file, got {file} ({reason})") from error
    raise DataError(
        f"Expected column '{missing[0]}' in {file}, got columns {', '.join(names) or '(none)'}"
    )
