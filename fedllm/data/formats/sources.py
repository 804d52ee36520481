"""Text data from files: JSON Lines, JSON arrays, delimited text, plain or gzip-compressed, and Parquet.

How a file is read is decided by its name, its first bytes and its header (:mod:`fedllm.data.formats.encodings`,
:mod:`fedllm.data.formats.delimited`). Each row is then judged by itself: one that is no record is a fault, and by the
rule the file is refused, or that row left out.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedllm.data.formats.delimited import delimited_rows
from fedllm.data.formats.encodings import decode_text
from fedllm.data.formats.parquet import parquet_rows
from fedllm.data.formats.records import (
    BadRows,
    DataError,
    Place,
    Record,
    RowError,
    TextDataset,
)

log = logging.getLogger("fedllm.data")

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
_FIRST = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_HINTS = {
    ".xlsx": "save the sheet as CSV",
    ".xls": "save the sheet as CSV",
    ".zip": "unpack it",
    ".arrow": "name the folder that save_to_disk wrote, with data.source=hub",
}


def load_file(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    bad_rows: BadRows = "refuse",
    limit: int | None = None,
) -> TextDataset:
    """Read one file of :data:`ENDINGS`, or one of the text formats with ``.gz`` behind its ending.

    ``.json`` holds JSON Lines, or one array of objects; ``.csv``, ``.tsv`` and ``.txt`` have a header. Values
    of delimited text are strings, others are as written. A key that a JSON object lacks is None, as in the
    other formats of tables.

    Args:
        columns: keep these only, each of which at least one record must have; None keeps all.
        delimiter: of delimited text; None finds it from the header.
        bad_rows: ``refuse``: a row that is no record refuses the file; ``drop``: it is left out and counted. A
            damaged file (cut short, no such column, open quotes, an array that is no JSON) is always refused.
        limit: keep the first records (a cut-short gzip stream is an error wherever it ends).

    Raises:
        DataError: the file, its line and what is wrong.

    Example:
        >>> load_file("notes.csv", columns=("text", "label")).columns  # doctest: +SKIP
        ('text', 'label')
    """
    file = Path(path)
    ending, packed = ending_of(file)
    if ending is None or (packed and ending == ".parquet"):
        hint = _HINTS.get(file.suffix.lower())
        raise DataError(
            f"Expected a data file ending in {', '.join(ENDINGS)} (or .gz behind one for text), got "
            f"{file}{f'; {hint}' if hint else ''}"
        )
    rows: Iterable[tuple[int, Record | RowError]]
    unit = "line"
    if ending == ".parquet":
        rows, unit = parquet_rows(file, columns), "row"
    else:
        raw = read_bytes(file, packed=packed)
        text = decode_text(raw, encoding, str(file), mark_bad=bad_rows == "drop")
        if ending in _FIRST:
            rows = delimited_rows(
                text, str(file), delimiter=delimiter, first=_FIRST[ending], columns=columns or ()
            )
        elif ending == ".json" and text.lstrip()[:1] == "[":
            rows, unit = array_rows(text, str(file)), "element"
        else:
            rows = jsonl_rows(text, str(file))
    records, numbers, left_out = _kept(rows, str(file), bad_rows, limit)
    places = [(f"{file} {unit}", number) for number in numbers]
    return _dataset(records, str(file), columns, left_out, places)


def ending_of(file: Path) -> tuple[str | None, bool]:
    """Return the ending of :data:`ENDINGS` that a file has (None for none), and whether ``.gz`` is behind it."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    ending = (suffixes[:-1] if packed else suffixes)[-1:]
    return (ending[0] if ending and ending[0] in ENDINGS else None), packed


def load_folder(
    folder: Path,
    *,
    silo_column: str,
    columns: Sequence[str],
    encoding: str = "utf-8",
    delimiter: str | None = None,
    bad_rows: BadRows = "refuse",
) -> TextDataset:
    """Read a folder with one file a silo; a file's name without endings is its silo's name.

    Args:
        silo_column: gets the silo's name, in each record.
        columns: as for :func:`load_file`, which reads each file.

    Raises:
        DataError: no file that can be read, two files of one name, or a file's fault.
    """
    files: dict[str, Path] = {}
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        ending, packed = ending_of(file)
        if ending is None or file.name.startswith("."):
            log.warning("note: %s is no data file and is not read", file)
            continue
        name = Path(file.stem).stem if packed else file.stem
        if name in files:
            raise DataError(
                f"Expected one file a silo in {folder}, got {files[name].name} and {file.name} for {name!r}"
            )
        files[name] = file
    if not files:
        raise DataError(f"Expected data files in {folder}, one a silo, got none")
    wanted = [column for column in columns if column != silo_column]
    records: list[Record] = []
    left_out: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    for name, file in files.items():
        found = load_file(
            file, columns=wanted, encoding=encoding, delimiter=delimiter, bad_rows=bad_rows
        )
        records += [record | {silo_column: name} for record in found]
        left_out += found.left_out
        places += found.places
    return TextDataset(records, str(folder), (*wanted, silo_column), left_out, places)


def read_bytes(file: Path, *, packed: bool) -> bytes:
    """Return the whole (unpacked) file; raises DataError where it is missing, damaged or cut short."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"Expected a readable data file, got {file} ({reason})") from error
    if not packed:
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"Expected a complete gzip file, got {file} of {len(raw)} bytes, cut short or damaged "
            f"({error})"
        ) from error


def jsonl_rows(text: str, name: str) -> Iterator[tuple[int, Record | RowError]]:
    """Yield (line number from 1, object or what is wrong with it) for every line that is not blank."""
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            value = json.loads(row)
        except ValueError as error:  # JSONDecodeError, and integers with too many digits
            yield (
                line,
                RowError(
                    f"Expected one complete JSON object a line in {name}, got {_excerpt(row)} in line "
                    f"{line} ({error}); is the file cut short?"
                ),
            )
        except RecursionError:
            yield (
                line,
                RowError(
                    f"Expected one JSON object a line in {name}, got nesting too deep in line {line}"
                ),
            )
        else:
            yield line, _object(value, name, "line", line, row)


def array_rows(text: str, name: str) -> Iterator[tuple[int, Record | RowError]]:
    """Yield (number from 1, object or what is wrong with it) for every element of one JSON array.

    Raises:
        DataError: the text is no JSON.
    """
    try:
        values = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"Expected a JSON array of objects in {name}, got text that is none ({error}); is the file cut short?"
        ) from error
    for number, value in enumerate(values, start=1):
        yield number, _object(value, name, "element", number, repr(value))


def _integer(digits: str) -> int | float:
    """Return an integer; infinity where it has too many digits, so that one such value is one row's fault."""
    return int(digits) if len(digits) < 1000 else float("inf")


def _object(value: Any, name: str, unit: str, number: int, written: str) -> Record | RowError:
    if isinstance(value, dict):
        return value
    return RowError(
        f"Expected one JSON object a {unit} in {name}, got {_excerpt(written)} in {unit} {number}"
    )


def _kept(
    rows: Iterable[tuple[int, Record | RowError]], name: str, rule: BadRows, limit: int | None
) -> tuple[list[Record], list[int], list[str]]:
    """Return the records, the number of each, and the lines that hold none."""
    records: list[Record] = []
    numbers: list[int] = []
    faults: list[str] = []
    for line, row in rows:
        if isinstance(row, RowError):
            if rule == "refuse":
                raise row
            faults.append(str(line))
            continue
        records.append(row)
        numbers.append(line)
        if limit is not None and len(records) >= limit:
            break
    if not faults:
        return records, numbers, []
    found = f"{len(faults)} of {len(faults) + len(records)} rows of {name} are no records; the first, by line: {', '.join(faults[:5])}"
    log.warning("left out: %s", found)
    return records, numbers, [found]


def _dataset(
    records: list[Record],
    name: str,
    columns: Sequence[str] | None,
    left_out: Sequence[str],
    places: Sequence[Place],
) -> TextDataset:
    """Return the records with the wanted columns, None where one has no such key."""
    if not records:
        raise DataError(f"Expected at least one example in {name}, got none")
    present = dict.fromkeys(key for record in records for key in record)
    wanted = tuple(dict.fromkeys(present if columns is None else columns))
    missing = [column for column in wanted if column not in present]
    if missing:
        raise DataError(
            f"Expected column '{missing[0]}' in {name}, got columns {', '.join(present) or '(none)'}"
        )
    chosen = [{column: record.get(column) for column in wanted} for record in records]
    return TextDataset(chosen, name, wanted, tuple(left_out), tuple(places))


def _excerpt(row: str) -> str:
    return repr(row if len(row) <= 60 else row[:57] + "...")
