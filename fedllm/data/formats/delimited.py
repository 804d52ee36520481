"""Delimited text (CSV and the like): the delimiter, the names and the blanks, all found from the header alone.

A record's values decide nothing about how others are read. Rows are found by quotes, though, as the format has it:
a record with a quote that is never closed is a damaged file, and the file is refused.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedllm.data.formats.records import DataError, Record, RowError

log = logging.getLogger("fedllm.data")

DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
csv.field_size_limit(2**31 - 1)  # a long text is no fault


@dataclass(frozen=True)
class Header:
    """Format of a delimited file, detected from its first row.

    Attributes:
        delimiter: one character.
        names: of the columns, without blanks around them; empty text for a column without a name.
        skip_blanks: whether blanks behind a delimiter are left out, as they stand before the names.
        notes: what was found and put right.
    """

    delimiter: str
    names: tuple[str, ...]
    skip_blanks: bool
    notes: tuple[str, ...]


def parse_csv(text: str, name: str) -> Iterator[tuple[int, Record]]:
    """Yield (number from 1 of the row's last line, row by column names) of comma-separated text.

    Raises:
        DataError: a fault, with its line.
    """
    for line, row in delimited_rows(text, name, delimiter=","):
        if isinstance(row, RowError):
            raise row
        yield line, row


def delimited_rows(
    text: str,
    name: str,
    *,
    delimiter: str | None = None,
    first: str = ",",
    columns: Sequence[str] = (),
) -> Iterator[tuple[int, Record | RowError]]:
    """Yield (number from 1 of the row's last line, the row by column names, or what is wrong with it).

    Args:
        delimiter: one character; None finds it from the header, see :func:`read_header`.
        first: of the known delimiters the one to take where the header leaves it open.
        columns: names that are looked for.

    Raises:
        DataError: quotes that do not fit, or a header whose names are not distinct or lack one of ``columns``.
    """
    marked = _SEPARATOR_LINE.match(text)  # a line of spreadsheets, for themselves
    if marked:
        delimiter = delimiter or marked.group(1)
    body = text[marked.end() :] if marked else text
    before = 1 if marked else 0
    header = read_header(body, name, delimiter=delimiter, first=first, columns=columns)
    if header is None:
        return
    for column in columns:
        if column not in header.names:
            raise DataError(
                f"Expected column '{column}' in {name}, got columns {', '.join(filter(None, header.names))} in its "
                f"header, separated by {header.delimiter!r} (data.delimiter)"
            )
    for note in header.notes:
        log.warning("note: %s: %s", name, note)
    rows = _rows(body, name, header.delimiter, header.skip_blanks)
    next(rows)
    for line, row in rows:
        line += before
        if len(row) != len(header.names):
            yield (
                line,
                RowError(
                    f"Expected {len(header.names)} values a row in {name} (columns "
                    f"{', '.join(filter(None, header.names))}), got {len(row)} in line {line}"
                ),
            )
            continue
        yield line, {key: value for key, value in zip(header.names, row, strict=True) if key}


def read_header(
    text: str, name: str, *, delimiter: str | None, first: str, columns: Sequence[str]
) -> Header | None:
    """Return what the first row that is not empty says; None if there is none.

    Of the known delimiters that one is taken with which the row holds most of ``columns``; of those, the one
    that gives most names; of those, ``first``, then the order of :data:`DELIMITERS`.

    Raises:
        DataError: names that are not distinct, or none at all.
    """
    known = (delimiter,) if delimiter else (first, *(d for d in DELIMITERS if d != first))
    best: tuple[tuple[int, int], str, list[str]] | None = None
    for candidate in known:
        try:
            _, row = next(_rows(text, name, candidate, skip_blanks=True))
        except StopIteration:
            return None
        except DataError:
            if len(known) == 1:
                raise
            continue
        names = {cell.strip() for cell in row}
        score = sum(column in names for column in columns), len(row)
        if best is None or score > best[0]:
            best = score, candidate, row
    if best is None:
        _, row = next(_rows(text, name, first, skip_blanks=True))  # raises the fault itself
        best = (0, 0), first, row
    found = best[1]
    _, raw = next(_rows(text, name, found, skip_blanks=False))
    blanks = any(cell.startswith(" ") for cell in raw[1:])
    names_ = tuple(cell.strip() for cell in (best[2] if blanks else raw))
    named = [cell for cell in names_ if cell]
    if len(set(named)) != len(named) or not named:
        raise DataError(
            f"Expected distinct column names in the header of {name}, got "
            f"{', '.join(map(repr, raw))} in line 1"
        )
    return Header(found, names_, blanks, tuple(_notes(found, raw, names_, delimiter, first)))


def _notes(
    found: str, raw: Sequence[str], names: Sequence[str], forced: str | None, first: str
) -> Iterator[str]:
    if forced is None and found != first:
        yield f"its columns are separated by {found!r} (data.delimiter forces another)"
    missing = [place for place, name in enumerate(names, start=1) if not name]
    if missing:
        yield f"column {', '.join(map(str, missing))} has no name and is not read"
    if any(cell != cell.strip() for cell in raw):
        yield "blanks around the names of its columns are left out"


def _rows(
    text: str, name: str, delimiter: str, skip_blanks: bool
) -> Iterator[tuple[int, list[str]]]:
    """Yield the last line and the values of each row that is not empty."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        skipinitialspace=skip_blanks,
        strict=True,
    )
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"Expected well-formed CSV in {name}, got a fault at line {reader.line_num} "
                f"({error}); is the file cut short?"
            ) from error
        if row:
            yield reader.line_num, row
