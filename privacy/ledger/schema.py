"""SQLite schema of a ledger; recognise a ledger file before using anything in it.

A file from elsewhere may hold whatever SQLite allows: views instead of tables, further triggers, values of a
gigabyte. A ledger's tables, index and triggers are known to the letter, and its values are small; everything else is
refused by the first look, which runs no SQL of the file.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from privacy.ledger.error import LedgerError

APPLICATION_ID = 0x46444C47  # "FDLG"
SCHEMA_VERSION = 2
"""Written by this code: a ledger that has a head next to it, and all rows in its own file."""
EARLIER_VERSION = 1
"""The same tables in WAL mode, without a head: read, and brought to this version when opened for writing."""
MOST_BYTES = 4 << 30
"""Maximum size of a ledger's file: some millions of rows."""
MOST_VALUE = 2 << 20
"""Bytes of one value, or of one row, at most; an entry holds far fewer (`privacy.ledger.entry`)."""
_MAGIC = b"SQLite format 3\x00"
_MOST_OBJECTS = 16  # tables, indices, triggers; a ledger's schema lies on the first page
_INDEX = "CREATE INDEX entries_by_party ON entries (party)"
_EARLIER_INDEX = "CREATE INDEX entries_by_party ON entries (party, unit, views)"

SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE entries (
  id INTEGER PRIMARY KEY,
  time TEXT NOT NULL,
  run TEXT NOT NULL,
  party TEXT NOT NULL,
  unit TEXT NOT NULL,
  purpose TEXT NOT NULL,
  round INTEGER NOT NULL,
  key TEXT NOT NULL,
  views TEXT NOT NULL,
  details TEXT NOT NULL,
  previous TEXT NOT NULL,
  hash TEXT NOT NULL,
  UNIQUE (run, party, key)
);
{_INDEX};
CREATE TABLE head (id INTEGER NOT NULL, hash TEXT NOT NULL);
INSERT INTO head VALUES (0, '{"0" * 64}');
CREATE TRIGGER entries_keep_rows BEFORE DELETE ON entries
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: no row may be deleted'); END;
CREATE TRIGGER entries_keep_content BEFORE UPDATE ON entries
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: no row may be changed'); END;
CREATE TRIGGER entries_append BEFORE INSERT ON entries
  WHEN NEW.id IS NOT (SELECT COALESCE(MAX(id), 0) + 1 FROM entries)
    OR NEW.previous IS NOT COALESCE(
      (SELECT hash FROM entries ORDER BY id DESC LIMIT 1), (SELECT hash FROM head))
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: rows go to the end'); END;
CREATE TRIGGER head_keep BEFORE DELETE ON head
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: the head may not be deleted'); END;
CREATE TRIGGER head_forward BEFORE UPDATE ON head
  WHEN NEW.id IS NOT (SELECT MAX(id) FROM entries)
    OR NEW.hash IS NOT (SELECT hash FROM entries ORDER BY id DESC LIMIT 1)
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: the head follows the last row'); END;
"""


@dataclass(frozen=True)
class Header:
    """Fields from the first bytes of a ledger's file.

    Attributes:
      version: Of the schema.
      wal: Whether rows may be in a -wal next to it.
    """

    version: int
    wal: bool


def require_plain_file(path: Path) -> None:
    """Refuse what is no file of its own, without opening it: links, pipes, devices, and what is too large.

    Raises:
      LedgerError: It is one of these.
      OSError: There is nothing.
    """
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise LedgerError(
            f"Expected the ledger's own file, got a symbolic link: {path}: name {os.path.realpath(path)} instead"
        )
    if not stat.S_ISREG(status.st_mode):
        raise LedgerError(f"Expected a ledger, got no plain file: {path}")
    if status.st_size > MOST_BYTES:
        raise LedgerError(
            f"Expected a ledger of at most {MOST_BYTES >> 30} GiB, got {status.st_size} bytes: {path}"
        )


def read_header(path: Path) -> Header:
    """Recognise a ledger by its first 100 bytes, without SQLite touching the file.

    Raises:
      LedgerError: It is none, one of another version, or defines more than a ledger does.
      OSError: It cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        header = os.read(handle, 105)
    finally:
        os.close(handle)
    if len(header) < 100 or header[:16] != _MAGIC:
        raise LedgerError(f"Expected a ledger, got a file that is not SQLite: {path}")
    application = int.from_bytes(header[68:72], "big")
    version = int.from_bytes(header[60:64], "big")
    if application != APPLICATION_ID:
        raise LedgerError(f"Expected a ledger, got an SQLite file of another application: {path}")
    if version not in (EARLIER_VERSION, SCHEMA_VERSION):
        raise LedgerError(
            f"Expected a ledger of schema version {SCHEMA_VERSION}, got version {version}: {path}"
        )
    if header[100:101] != b"\x0d" or int.from_bytes(header[103:105], "big") > _MOST_OBJECTS:
        raise LedgerError(f"Expected a ledger, got a file that defines more than one does: {path}")
    return Header(version, wal=2 in (header[18], header[19]))


def restrict(connection: sqlite3.Connection) -> None:
    """Let a connection neither hold large values nor call functions from a file's schema."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_VALUE)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


def check_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Compare all that a file defines with what a ledger defines.

    Raises:
      LedgerError: Something is missing, more, or other.
      sqlite3.Error: The file cannot be read.
    """
    found: set[tuple[str, str, str | None]] = set()
    wanted = _objects()
    for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_schema"):
        row = (kind, name, _INDEX if sql == _EARLIER_INDEX else sql)
        found.add(row)
        if row not in wanted:
            break
    missing = sorted(name for _, name, _ in wanted - found)
    foreign = sorted(str(name)[:60] for _, name, _ in found - wanted)
    if foreign:
        raise LedgerError(f"The ledger holds {foreign[0]!r}, which no ledger defines so: {path}")
    if missing:
        raise LedgerError(f"The ledger lacks {', '.join(missing)}: {path}")


@cache
def _objects() -> frozenset[tuple[str, str, str | None]]:
    """Return (type, name, SQL) of each object of a ledger."""
    db = sqlite3.connect(":memory:")
    try:
        db.executescript(SCHEMA)
        return frozenset(db.execute("SELECT type, name, sql FROM sqlite_schema"))
    finally:
        db.close()
