"""Write new entries as ledger rows, and read rows as entries."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privacy.ledger.entry import LedgerEntry, parse_details, parse_views
from privacy.ledger.error import LedgerError
from privacy.ledger.hash_chain import COLUMNS, row_hash
from privacy.ledger.heads import Head

_LOOKUP = 1000  # keys in one query, with three parameters each: SQLite allows 32766


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
        for (field, now), old in zip(content.items(), known[name], strict=True):
            if now != old:
                raise LedgerConflict(
                    f"Entry {'/'.join(name)} is recorded in {path} with {field}={old!r}, "
                    f"now got {field}={now!r}: a key names one release only"
                )
    return new
