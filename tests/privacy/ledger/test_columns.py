"""Every column of a row is under the hash: no value can be changed afterwards without a trace."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from privacy.events.constructors import dp_sgd
from privacy.events.serialization import event_to_json
from privacy.guarantee import Unit
from privacy.ledger.entry import canonical_json
from privacy.ledger.ledger import Ledger, LedgerEntry

STEP, QUIETER = dp_sgd(0.01, 1.0, 4), dp_sgd(0.01, 9.0, 4)
# Each is a value that the column could well have had.
CHANGES = {
    "time": "2020-01-01T00:00:00.000000+00:00",
    "run": "another",
    "party": "another",
    "unit": "client",
    "purpose": "evaluate",
    "round": 7,
    "key": "another",
    "views": canonical_json({"outsider": event_to_json(QUIETER), "server": event_to_json(QUIETER)}),
    "details": '{"clip_norm":0.25}',
}


def row(number: int, event: object = STEP) -> LedgerEntry:
    return LedgerEntry(
        run="run",
        party="alpha",
        unit=Unit.EXAMPLE,
        purpose="train",
        round=number,
        key=f"round-{number}",
        views={"server": event, "outsider": event},
        details={"clip_norm": 0.5},
    )


def triggers(db: sqlite3.Connection) -> list[tuple[str, str]]:
    return db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()


@pytest.mark.parametrize("column", CHANGES)
def test_a_changed_value_shows(column: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.extend([row(number) for number in range(3)])
        assert ledger.verify().ok
    db = sqlite3.connect(path)
    kept = triggers(db)
    for name, _ in kept:
        db.execute(f"DROP TRIGGER {name}")
    db.execute(f"UPDATE entries SET {column} = ? WHERE id = 2", (CHANGES[column],))
    assert db.total_changes == 1
    for _, sql in kept:
        db.execute(sql)
    db.commit()
    db.close()
    with Ledger(path, read_only=True) as ledger:
        found = ledger.verify()
        (entry,) = [e for e in ledger.entries() if e.id == 2]
    assert found.problems == ["row 2 was edited: its hash does not match its content"]
    if column == "views":
        assert entry.view("server") == QUIETER, "the edited row must be one that can be read"


def test_all_columns_are_tried(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    db = sqlite3.connect(path)
    columns = {name for _, name, *_ in db.execute("PRAGMA table_info(entries)")}
    db.close()
    assert columns == {*CHANGES, "id", "previous", "hash"}
