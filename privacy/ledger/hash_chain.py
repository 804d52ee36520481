"""Hash chain of a ledger's rows, written and verified: each holds the SHA-256 of the row before and of its content."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from json.encoder import encode_basestring_ascii as json_text
from pathlib import Path
from typing import Any

from privacy.ledger.adoption import ADOPT, adoption_sentence
from privacy.ledger.entry import LedgerEntry, canonical_json, parse_details, parse_views
from privacy.ledger.error import LedgerError
from privacy.ledger.heads import EMPTY, GENESIS, Head
from privacy.ledger.limits import MOST_NAME, require_length

COLUMNS = "id, time, run, party, unit, purpose, round, key, views, details, previous, hash"
"""Columns of a row, in this order."""

_BODY = (  # canonical_json of a row, written out: three times as fast
    '{"details":%s,"id":%d,"key":%s,"party":%s,"purpose":%s,"round":%d,"run":%s,"time":%s,'
    '"unit":%s,"views":%s}'
)
_MOST_PROBLEMS = 100  # that are sent
_LOOKUP = 1000  # keys in one query, with three parameters each: SQLite allows 32766
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
    """Return the defects of a row that should have this id and follow this hash."""
    row_id, time, *content, recorded_previous, _ = row
    names = ("run", "party", "unit", "purpose", "round", "key", "views", "details")
    problems: list[str] = []
    if row_id != expected_id:
        problems.append(f"rows {expected_id} to {row_id - 1} are missing")
    elif recorded_previous != previous:
        problems.append(f"row {row_id} does not follow the row before it: one was replaced")
    values = dict(zip(names, content, strict=True))
    if _is_edited(row, values):
        problems.append(f"row {row_id} was edited: its hash does not match its content")
    try:
        for name in names[:4]:
            if len(str(values[name])) > MOST_NAME:
                require_length(name, str(values[name]), MOST_NAME)
        parse_views(values["views"])
        details = values["details"]
        (_details_cached if len(details) < 2000 else parse_details)(details)
        if values["purpose"] == ADOPT:
            adoption_sentence(row_id, str(time), values["details"])
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        problems.append(f"row {row_id} holds an event that cannot be read: {str(error)[:300]}")
    return problems


def _is_edited(row: tuple[Any, ...], values: Mapping[str, Any]) -> bool:
    """Return whether a row's content is not what its hash is of; also where JSON has no such value."""
    row_id, time, *_, recorded_previous, digest = row
    try:
        return bool(row_hash(str(recorded_previous), row_id, time, values) != digest)
    except (TypeError, ValueError):  # bytes or an infinity instead of text or a number
        return True


@lru_cache(maxsize=1024)
def _details_cached(text: str) -> None:
    parse_details(text)


def head_problems(db: sqlite3.Connection, last: Head) -> list[str]:
    """Return the defects of the head that the file records next to its rows, given the last row."""
    head = db.execute("SELECT id, hash FROM head").fetchmany(2)
    if head == [tuple(last)]:
        return []
    return [
        f"the last row is {last.rows}, the recorded head is {head[0][0] if head else 'missing'}: rows at the "
        "end are missing or added"
    ]


@dataclass(frozen=True)
class VerifyReport:
    """Result of `Ledger.verify`.

    Attributes:
      ok: No problem.
      rows: Number of rows read.
      problems: One sentence for each problem.
      head: (id, hash) of the last row, (0, GENESIS) for an empty ledger; keep it elsewhere and
        give it to a later `verify`, which then notices a ledger that was reset or rewritten.
      adoptions: One sentence for each time that somebody went on deliberately with a ledger that was refused.
      notes: What is no problem and should be known: a head that is missing.
    """

    ok: bool
    rows: int
    problems: list[str]
    head: Head
    adoptions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_chain(db: sqlite3.Connection, kept_head: tuple[int, str] | None = None) -> VerifyReport:
    """Recompute the whole chain of a database, in one snapshot.

    Args:
      kept_head: A head that was kept elsewhere: it must still be there.

    Returns:
      The report; a problem is reported, never raised.
    """
    problems: list[str] = []
    adoptions: list[str] = []
    previous, expected_id, rows = GENESIS, 1, 0
    kept = kept_head is None or kept_head == EMPTY
    try:
        db.execute("BEGIN")  # one snapshot for all reads
        try:
            problems += [
                f"SQLite: {row[0]}"
                for row in db.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})")
                if row[0] != "ok"
            ]
            for row in db.execute(f"SELECT {COLUMNS} FROM entries ORDER BY id"):
                rows += 1
                found = row_problems(row, expected_id, previous)
                problems += found if len(problems) < _MOST_PROBLEMS else []
                expected_id, previous = row[0] + 1, row[11]
                kept = kept or (row[0], row[11]) == kept_head
                if row[5] == ADOPT and not found:
                    adoptions.append(adoption_sentence(row[0], str(row[1]), row[9]))
            problems += head_problems(db, Head(expected_id - 1, previous))
        finally:
            db.execute("ROLLBACK")
    except (sqlite3.Error, UnicodeError, IndexError, TypeError) as error:
        problems.append(f"the file cannot be read to the end: {error}")
    if not kept and kept_head is not None:
        problems.append(
            f"the kept head (row {kept_head[0]}) is not in this ledger: it was reset or rewritten"
        )
    return VerifyReport(not problems, rows, problems, Head(expected_id - 1, previous), adoptions)


class LedgerConflict(LedgerError):
    """The same run, party and key were recorded before with another content."""


def insert_rows(db: sqlite3.Connection, head: Head, contents: Iterable[Mapping[str, Any]]) -> None:
    """Add rows after the head, within a transaction."""
    row_id, previous = head
    time = datetime.now(UTC).isoformat(timespec="microseconds")
    rows = []
    for content in contents:
        row_id += 1
        digest = row_hash(previous, row_id, time, content)
        rows.append((row_id, time, *content.values(), previous, digest))
        previous = digest
    marks = ",".join("?" * len(rows[0]))
    db.executemany(f"INSERT INTO entries ({COLUMNS}) VALUES ({marks})", rows)
    db.execute("UPDATE head SET id = ?, hash = ?", (row_id, previous))


def read_entry(row: tuple[Any, ...]) -> LedgerEntry:
    """Return a row, in the order of `COLUMNS`, as the entry that it holds.

    Raises:
      ValueError, TypeError, AttributeError: It holds none.
    """
    row_id, time, run, party, unit, purpose, round_, key, views, details, _, digest = row
    return LedgerEntry(
        run=run,
        party=party,
        unit=unit,
        purpose=purpose,
        round=round_,
        key=key,
        views=parse_views(views),
        details=parse_details(details),
        id=row_id,
        time=time,
        hash=digest,
    )


def not_recorded(
    db: sqlite3.Connection, path: Path, prepared: Sequence[tuple[LedgerEntry, dict[str, Any]]]
) -> list[tuple[LedgerEntry, dict[str, Any]]]:
    """Leave out what is in the ledger, or came before in the same list, with this content."""
    names = [(entry.run, entry.party, entry.key) for entry, _ in prepared]
    known: dict[tuple[str, str, str], Iterable[Any]] = {}
    for start in range(0, len(names), _LOOKUP):
        part = names[start : start + _LOOKUP]
        rows = db.execute(
            f"WITH wanted (run, party, key) AS (VALUES {','.join(['(?,?,?)'] * len(part))}) "
            "SELECT e.run, e.party, e.unit, e.purpose, e.round, e.key, e.views, e.details "
            "FROM wanted AS w CROSS JOIN entries AS e "  # CROSS: each name looked up in the index
            "WHERE e.run = w.run AND e.party = w.party AND e.key = w.key",
            [text for name in part for text in name],
        )
        known |= {(row[0], row[1], row[5]): row for row in rows}
    new = []
    for name, (entry, content) in zip(names, prepared, strict=True):
        if name not in known:
            known[name] = content.values()
            new.append((entry, content))
            continue
        for (column, now), old in zip(content.items(), known[name], strict=True):
            if now != old:
                raise LedgerConflict(
                    f"Entry {'/'.join(name)} is recorded in {path} with {column}={old!r}, "
                    f"now got {column}={now!r}: a key names one release only"
                )
    return new
