"""Text data from files: JSON Lines and CSV, plain or gzip-compressed.

A file is read whole and checked line by line; any fault raises one DataError that names the file and
the line, and nothing is skipped or guessed.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedllm.data.records import DataError, Record, TextDataset

_KINDS = {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


def load_file(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    encoding: str = "utf-8",
    limit: int | None = None,
) -> TextDataset:
    """Read ``.jsonl``, ``.jsonl.gz``, ``.csv`` or ``.csv.gz``.

    ``columns``: keep these only, all of which must exist. Without it a CSV file's columns are its
    header's, and a JSON Lines file's are the first line's; every line must have them. CSV values are
    strings; JSON values are as written. ``limit`` keeps the first examples (the file is checked as
    far as it is used, but a cut-short gzip stream is an error wherever it ends).

    Raises DataError for a missing file, an unknown ending or encoding, undecodable bytes, a file cut
    short, a line that is not a JSON object, a ragged CSV row, a missing column, and no examples.
    """
    file = Path(path)
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    ending = (suffixes[:-1] if packed else suffixes)[-1:]
    kind = _KINDS.get(ending[0]) if ending else None
    if kind is None:
        raise DataError(
            f"Expected a data file ending in .jsonl, .csv, .jsonl.gz or .csv.gz, got {file}"
        )
    text = decode_text(read_bytes(file, packed=packed), encoding, str(file))
    rows = parse_jsonl(text, str(file)) if kind == "jsonl" else parse_csv(text, str(file))
    records: list[Record] = []
    wanted = tuple(columns) if columns is not None else None
    for line, record in rows:
        if wanted is None:
            wanted = tuple(record)
        missing = [column for column in wanted if column not in record]
        if missing:
            raise DataError(
                f"Expected column '{missing[0]}' in {file}, got columns "
                f"{', '.join(record) or '(none)'} in line {line}"
            )
        records.append({column: record[column] for column in wanted})
        if limit is not None and len(records) >= limit:
            break
    if not records:
        raise DataError(f"Expected at least one example in {file}, got none")
    return TextDataset(records, str(file), wanted or ())


def read_bytes(file: Path, *, packed: bool) -> bytes:
    """The whole (unpacked) file; raises DataError where it is missing, damaged or cut short."""
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


def decode_text(raw: bytes, encoding: str, name: str) -> str:
    """Decode strictly, without a byte order mark; DataError names the line of the first bad byte."""
    try:
        text = raw.decode(encoding)
    except LookupError as error:
        raise DataError(
            f"Expected a known text encoding for {name}, got encoding={encoding}"
        ) from error
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        line = raw.count(b"\n", 0, start) + 1
        raise DataError(
            f"Expected text in encoding={encoding} in {name}, got bytes "
            f"{raw[start : start + 4]!r} in line {line}"
        ) from error
    return text.removeprefix("\ufeff")


def parse_jsonl(text: str, name: str) -> Iterator[tuple[int, Record]]:
    """Yield (line number from 1, object) for every line that is not blank."""
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            value = json.loads(row)
        except ValueError as error:  # JSONDecodeError, and integers with too many digits
            raise DataError(
                f"Expected one complete JSON object a line in {name}, got {_excerpt(row)} in line "
                f"{line} ({error}); is the file cut short?"
            ) from error
        except RecursionError as error:
            raise DataError(
                f"Expected one JSON object a line in {name}, got nesting too deep in line {line}"
            ) from error
        if not isinstance(value, dict):
            raise DataError(
                f"Expected one JSON object a line in {name}, got {_excerpt(row)} in line {line}"
            )
        yield line, value


def parse_csv(text: str, name: str) -> Iterator[tuple[int, Record]]:
    """Yield (number from 1 of the row's last line, row by column names of the header line)."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
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
        if not row:
            continue
        if header is None:
            header = row
            if len(set(header)) != len(header) or not all(column.strip() for column in header):
                raise DataError(
                    f"Expected distinct column names in the header of {name}, got "
                    f"{', '.join(map(repr, header))} in line {reader.line_num}"
                )
            continue
        if len(row) != len(header):
            raise DataError(
                f"Expected {len(header)} values a row in {name} (columns {', '.join(header)}), got "
                f"{len(row)} in line {reader.line_num}"
            )
        yield reader.line_num, dict(zip(header, row, strict=True))


def _excerpt(row: str) -> str:
    return repr(row if len(row) <= 60 else row[:57] + "...")
