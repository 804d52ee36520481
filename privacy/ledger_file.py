"""The ledger's SQLite file: made whole or not at all, recognised before it is touched.

Reading leaves no trace. SQLite itself cannot promise that for a WAL database: `mode=ro` makes -wal
and -shm files, and rewrites a crashed writer's -shm; `immutable=1` does not see rows that are in
the -wal only. So a reader copies the file and its -wal to a private folder, and lets SQLite recover
the copy. The copy counts if neither file changed meanwhile; it is then what a crash at that moment
would have left, from which SQLite recovers every durable row. Only while others keep writing (their
-wal and -shm are there anyway) the file is read in place, `mode=ro`.

POSIX locks belong to a process and a file: closing *any* descriptor of a file drops the locks that
SQLite holds on it through another descriptor of the same process, and another process may then take
itself for the last user and unlink the -wal under us. Hence `_in_place`: the file is never opened
beside SQLite while this process has it open through SQLite; and after each commit `Database.check`
asks whether the files at the ledger's path are still those that were opened.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from privacy.file_system import file_system_of
from privacy.ledger_error import LedgerError

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
CREATE INDEX entries_by_party ON entries (party);
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

_SETTLED = 0.02  # seconds: more than the step of a file system's clock
_ATTEMPTS = 6

_guard = threading.RLock()
_in_place: Counter[tuple[int, int]] = Counter()  # (device, inode) -> connections of this process
_checked: set[tuple[int, int]] = set()  # found in good order, or made, by this process
_told: set[str] = set()  # types of file systems that were logged
_logger = logging.getLogger(__name__)


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


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


class Database:
    """A connection to a ledger's file.

    Attributes:
      connection: SQLite's connection.
    """

    def __init__(self, connection: sqlite3.Connection, release: Callable[[], None]) -> None:
        """Keep the connection, and what is to be undone when it is closed."""
        self.connection = connection
        self._release = release
        self._files: dict[Path, tuple[int, int]] = {}

    def remember(self, path: Path) -> None:
        """Note the files that are open, for `check`."""
        self._files = {file: _identity(file) for file in (path, _wal(path))}

    def check(self) -> None:
        """Raise LedgerError if a file at the ledger's path is no longer the one that is open."""
        for file, opened in self._files.items():
            try:
                same = _identity(file) == opened
            except OSError:
                same = False
            if not same:
                raise LedgerError(
                    f"The ledger's file {file} was moved, deleted or replaced while it was open: "
                    "what was recorded since may be lost, nothing may be released"
                )

    def close(self) -> None:
        """Close the connection; idempotent."""
        release, self._release = self._release, lambda: None
        self.connection.close()
        release()

    def __del__(self) -> None:
        """A forgotten connection must not count as open for ever."""
        with contextlib.suppress(Exception):
            self.close()


def _connect_in_place(path: Path, mode: str, timeout: float) -> Database:
    """Connect SQLite to the file itself; the caller holds `_guard`."""
    identity = _identity(path)
    _in_place[identity] += 1

    def release() -> None:
        with _guard:
            _in_place[identity] -= 1

    try:
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode={mode}",
            uri=True,
            timeout=timeout,
            isolation_level=None,
            check_same_thread=False,
        )
    except BaseException:
        release()
        raise
    return Database(connection, release)


def _state(path: Path) -> list[tuple[int, int, int] | None]:
    """What changes whenever the ledger's file or its -wal does; see `_SETTLED`."""
    found: list[tuple[int, int, int] | None] = []
    for file in (path, _wal(path)):
        try:
            status = file.stat()
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            found.append(None)
    return found


def _copy(path: Path, timeout: float) -> Database | None:
    """Connect SQLite to a private copy; None while others keep writing.

    The caller holds `_guard`, and knows that this process has no connection to the file.
    """
    for _ in range(_ATTEMPTS):
        before = _state(path)
        age = time.time() - max(state[2] for state in before if state) / 1e9
        if 0 <= age < _SETTLED:
            time.sleep(_SETTLED - age)
            continue
        folder = tempfile.TemporaryDirectory(prefix="fedllm-ledger-")
        copy = Path(folder.name) / "ledger.sqlite"
        try:
            shutil.copyfile(path, copy)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(_wal(path), _wal(copy))
            if _state(path) == before:
                connection = sqlite3.connect(
                    copy, timeout=timeout, isolation_level=None, check_same_thread=False
                )
                return Database(connection, folder.cleanup)
        except BaseException:
            folder.cleanup()
            raise
        folder.cleanup()
    return None


def _check_pages(path: Path, connection: sqlite3.Connection) -> None:
    """Check the file's structure."""
    problems = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
    if problems != ["ok"]:
        raise LedgerError(f"The ledger is damaged: {path}: {problems[0] if problems else '?'}")
    found = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    missing = {
        "entries", "head", "entries_keep_rows", "entries_keep_content", "entries_append",
        "head_keep", "head_forward",
    } - found  # fmt: skip
    if missing:
        raise LedgerError(f"The ledger lacks {', '.join(sorted(missing))}: {path}")


def _open_for_reading(path: Path, timeout: float) -> Database:
    database = None if _in_place[_identity(path)] else _copy(path, timeout)
    database = database or _connect_in_place(path, "ro", timeout)
    try:
        _check_pages(path, database.connection)
        database.connection.execute("SELECT id FROM head").fetchone()
        database.connection.execute("PRAGMA query_only = ON")
    except BaseException:
        database.close()
        raise
    return database


def _open_for_writing(path: Path, timeout: float) -> Database:
    if _identity(path) not in _checked:  # once per process and file
        _open_for_reading(path, timeout).close()
        _checked.add(_identity(path))
    database = _connect_in_place(path, "rw", timeout)
    try:
        db = database.connection
        db.execute("PRAGMA synchronous = FULL")
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise LedgerError(f"Expected journal mode wal, got {mode}: {path}")
        db.execute("SELECT id FROM head").fetchone()  # from here on SQLite keeps the -wal
        database.remember(path)
    except BaseException:
        database.close()
        raise
    return database


def _refuse_network(path: Path) -> None:
    """Refuse to write where locks and flushes cannot be relied on; log where that is not known."""
    found = file_system_of(path)
    if found.kind == "network":
        raise LedgerError(
            f"Expected the ledger on a local disk, got {path} on a network file system ({found.type}), where "
            "neither locks nor flushed rows can be relied on: name a path on a local disk (privacy.ledger of "
            "an experiment, ledger of a silo's file)"
        )
    if found.kind == "unknown" and found.type not in _told:
        _told.add(found.type)
        _logger.info(
            "The ledger %s lies on a file system of type %s, of which it is not known whether other machines "
            "write to it too: keep ledgers on a local disk",
            path,
            found.type,
        )


def open_database(path: Path, *, read_only: bool, timeout: float) -> Database:
    """Open, and unless read_only create, a ledger's database.

    Read-only: the file, its folder and their times stay as they are, whatever is found; the rows
    are those that were durable at the call, and perhaps later ones.

    Raises:
      LedgerError: The file is absent (read_only), foreign, damaged, of another schema version, not
        accessible, or to be written on a network file system. It is left untouched.
    """
    try:
        if not read_only:
            _refuse_network(path)
        with _guard:
            if not path.exists():
                if read_only:
                    raise LedgerError(f"Expected a ledger, got no file: {path}")
                _create(path)
                _checked.add(_identity(path))
            if not _in_place[_identity(path)]:
                _check_header(path)
            return (
                _open_for_reading(path, timeout) if read_only else _open_for_writing(path, timeout)
            )
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"Cannot open the ledger {path}: {error}") from error
