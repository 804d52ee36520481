"""The ledger's SQLite file: made whole or not at all, recognised before it is touched."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
from pathlib import Path
from urllib.parse import quote

APPLICATION_ID = 0x46444C47  # "FDLG"
SCHEMA_VERSION = 1
_MAGIC = b"SQLite format 3\x00"

_SCHEMA = f"""
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
CREATE INDEX entries_by_party ON entries (party, unit, views);
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

_checked: set[tuple[str, int, int]] = set()
_checked_lock = threading.Lock()


class LedgerError(ValueError):
    """A ledger cannot be opened, read, trusted or written; the message says which and why."""


def _fsync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _create(path: Path) -> None:
    """Make an empty ledger beside the path and link it there; lose quietly to another creator."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    os.close(handle)
    try:
        db = sqlite3.connect(name, isolation_level=None)
        try:
            db.executescript(_SCHEMA)
            db.execute("PRAGMA journal_mode = WAL")  # kept in the header of the file
        finally:
            db.close()
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
        _fsync_directory(path.parent)
    finally:
        for leftover in (name, f"{name}-wal", f"{name}-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)


def _check_header(path: Path) -> None:
    """Recognise a ledger by its first 100 bytes, without SQLite touching the file."""
    with open(path, "rb") as file:
        header = file.read(100)
    if len(header) < 100 or header[:16] != _MAGIC:
        raise LedgerError(f"Expected a ledger, got a file that is not SQLite: {path}")
    application = int.from_bytes(header[68:72], "big")
    version = int.from_bytes(header[60:64], "big")
    if application != APPLICATION_ID:
        raise LedgerError(f"Expected a ledger, got an SQLite file of another application: {path}")
    if version != SCHEMA_VERSION:
        raise LedgerError(
            f"Expected a ledger of schema version {SCHEMA_VERSION}, got version {version}: {path}"
        )


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path.absolute()))}?mode={mode}"


def _check_pages(path: Path, timeout: float) -> None:
    """Check the file's structure read-only, once per process and file."""
    status = path.stat()
    identity = (str(path.absolute()), status.st_dev, status.st_ino)
    with _checked_lock:
        if identity in _checked:
            return
    db = sqlite3.connect(_uri(path, "ro"), uri=True, timeout=timeout)
    try:
        problems = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
        found = {row[0] for row in db.execute("SELECT name FROM sqlite_schema")}
    finally:
        db.close()
    if problems != ["ok"]:
        raise LedgerError(f"The ledger is damaged: {path}: {problems[0] if problems else '?'}")
    missing = {
        "entries", "head", "entries_keep_rows", "entries_keep_content", "entries_append",
        "head_keep", "head_forward",
    } - found  # fmt: skip
    if missing:
        raise LedgerError(f"The ledger lacks {', '.join(sorted(missing))}: {path}")
    with _checked_lock:
        _checked.add(identity)


def open_database(path: Path, *, read_only: bool, timeout: float) -> sqlite3.Connection:
    """Open, and unless read_only create, a ledger's database.

    Raises:
      LedgerError: The file is absent (read_only), foreign, damaged, of another schema version, or
        not accessible. It is left untouched.
    """
    try:
        if not path.exists():
            if read_only:
                raise LedgerError(f"Expected a ledger, got no file: {path}")
            _create(path)
        _check_header(path)
        _check_pages(path, timeout)
        db = sqlite3.connect(
            _uri(path, "ro" if read_only else "rw"),
            uri=True,
            timeout=timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if not read_only:
                db.execute("PRAGMA synchronous = FULL")
                mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                if mode != "wal":
                    raise LedgerError(f"Expected journal mode wal, got {mode}: {path}")
            db.execute("SELECT id FROM head").fetchone()
        except BaseException:
            db.close()
            raise
        return db
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"Cannot open the ledger {path}: {error}") from error
