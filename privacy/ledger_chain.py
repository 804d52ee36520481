"""The chain of a ledger's rows: each holds the SHA-256 of the row before it and of its own content."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from json.encoder import encode_basestring_ascii as json_text
from typing import Any

from privacy.ledger_entry import canonical_json, parse_views
from privacy.ledger_heads import GENESIS, Head

COLUMNS = "id, time, run, party, unit, purpose, round, key, views, details, previous, hash"
"""Of a row, in this order."""

_BODY = (  # canonical_json of a row, written out: three times as fast
    '{"details":%s,"id":%d,"key":%s,"party":%s,"purpose":%s,"round":%d,"run":%s,"time":%s,'
    '"unit":%s,"views":%s}'
)
_TEXTS = ("details", "key", "party", "purpose", "run", "unit", "views")


def row_hash(previous: str, row_id: int, time: str, content: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the hash of the row before and of a row's own content."""
    try:
        details, key, party, purpose, run, unit, views = (json_text(content[n]) for n in _TEXTS)
        if type(row_id) is not int or type(content["round"]) is not int:
            raise TypeError
        body = _BODY % (
            details, row_id, key, party, purpose, content["round"], run, json_text(time), unit, views
        )  # fmt: skip
    except TypeError:  # an edited row
        body = canonical_json({"id": row_id, "time": time, **content})
    return sha256(f"{previous}\n{body}".encode()).hexdigest()


def row_problems(row: tuple[Any, ...], expected_id: int, previous: str) -> list[str]:
    """Return what is wrong with a row that should have this id and follow this hash."""
    row_id, time, *content, recorded_previous, digest = row
    names = ("run", "party", "unit", "purpose", "round", "key", "views", "details")
    problems: list[str] = []
    if row_id != expected_id:
        problems.append(f"rows {expected_id} to {row_id - 1} are missing")
    elif recorded_previous != previous:
        problems.append(f"row {row_id} does not follow the row before it: one was replaced")
    values = dict(zip(names, content, strict=True))
    if row_hash(str(recorded_previous), row_id, time, values) != digest:
        problems.append(f"row {row_id} was edited: its hash does not match its content")
    try:
        parse_views(values["views"])
    except (ValueError, AttributeError, TypeError) as error:
        problems.append(f"row {row_id} holds an event that cannot be read: {error}")
    return problems


@dataclass(frozen=True)
class VerifyReport:
    """What `Ledger.verify` found.

    Attributes:
      ok: No problem.
      rows: Number of rows read.
      problems: One sentence for each problem.
      head: (id, hash) of the last row, (0, GENESIS) for an empty ledger; keep it elsewhere and
        give it to a later `verify`, which then notices a ledger that was reset or rewritten.
    """

    ok: bool
    rows: int
    problems: list[str]
    head: Head


def verify_chain(db: sqlite3.Connection, kept_head: tuple[int, str] | None = None) -> VerifyReport:
    """Recompute the whole chain of a database, in one snapshot.

    Args:
      kept_head: A head that was kept elsewhere: it must still be there.

    Returns:
      The report; a problem is reported, never raised.
    """
    problems: list[str] = []
    previous, expected_id, rows = GENESIS, 1, 0
    hashes: dict[int, str] = {0: GENESIS}
    try:
        db.execute("BEGIN")  # one snapshot for all reads
        try:
            problems += [
                f"SQLite: {row[0]}"
                for row in db.execute("PRAGMA integrity_check")
                if row[0] != "ok"
            ]
            for row in db.execute(f"SELECT {COLUMNS} FROM entries ORDER BY id"):
                rows += 1
                problems += row_problems(row, expected_id, previous)
                expected_id, previous = row[0] + 1, row[11]
                hashes[row[0]] = row[11]
            head = db.execute("SELECT id, hash FROM head").fetchall()
        finally:
            db.execute("ROLLBACK")
        if head != [(expected_id - 1, previous)]:
            problems.append(
                f"the last row is {expected_id - 1}, the recorded head is "
                f"{head[0][0] if head else 'missing'}: rows at the end are missing or added"
            )
    except (sqlite3.Error, IndexError, TypeError) as error:
        problems.append(f"the file cannot be read to the end: {error}")
    if kept_head is not None and hashes.get(kept_head[0]) != kept_head[1]:
        problems.append(
            f"the kept head (row {kept_head[0]}) is not in this ledger: it was reset or rewritten"
        )
    return VerifyReport(not problems, rows, problems, Head(expected_id - 1, previous))
