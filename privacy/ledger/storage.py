"""SQLite file of a ledger: created atomically, recognised before use, complete after each commit.

The journal is a rollback journal (DELETE, `synchronous=EXTRA`): when a commit returns, every row is in the file
itself and on disk, and nothing lies next to it. A copy of the file alone has all rows; one taken in the midst of a
commit is whole, or is refused when it is checked. The price next to WAL is some five flushes a commit instead of one.

Reading leaves no trace, where the last writer was killed in the midst of a commit neither: see
`privacy.ledger.snapshot`.

POSIX locks belong to a process and a file: closing *any* descriptor of a file drops the locks that
SQLite holds on it through another descriptor of the same process. Hence `_in_place`: the file is never opened
next to SQLite while this process has it open through SQLite; and after each commit `Database.check`
asks whether the file at the ledger's path is still the one that was opened.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from privacy.file_system import file_system_of
from privacy.ledger import snapshot as ledger_snapshot
from privacy.ledger.error import LedgerError
from privacy.ledger.schema import (
    APPLICATION_ID,
    EARLIER_VERSION,
    SCHEMA,
    SCHEMA_VERSION,
    check_schema,
    read_header,
    require_plain_file,
    restrict,
)

__all__ = ["APPLICATION_ID", "Database", "LedgerError", "is_earlier", "open_database"]

_guard = threading.RLock()
_in_place: Counter[tuple[int, int]] = Counter()  # (device, inode) -> connections of this process
_told: set[str] = set()  # types of file systems that were logged
_logger = logging.getLogger(__name__)


def _fsync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _create(path: Path) -> None:
    """Make an empty ledger next to the path and link it there; lose quietly to another creator."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in ledger_snapshot.beside(path):
        if left.exists():
            raise LedgerError(
                f"Expected nothing of a ledger at {path}, where none is, got {left.name}: the ledger was taken "
                "away from beside it; put it back, or move that file away"
            )
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    os.close(handle)
    try:
        db = sqlite3.connect(name, isolation_level=None)
        try:
            db.executescript(SCHEMA)
        finally:
            db.close()
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
        _fsync_directory(path.parent)
    finally:
        for leftover in (name, f"{name}-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def is_earlier(db: sqlite3.Connection) -> bool:
    """Return True if a ledger's file is of the version before heads were kept."""
    return bool(db.execute("PRAGMA user_version").fetchone()[0] == EARLIER_VERSION)


class Database:
    """A connection to a ledger's file.

    Attributes:
      connection: SQLite's connection.
      path: The file.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, release: Callable[[], None]
    ) -> None:
        """Keep the connection, and what is to be undone when it is closed."""
        self.path = path
        self.connection = connection
        self._release = release
        self._file: tuple[int, int] | None = None

    @property
    def earlier(self) -> bool:
        """Return True if the file is of the version before heads were kept."""
        return is_earlier(self.connection)

    def bring_up(self) -> None:
        """Mark the file as of this version."""
        self.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def remember(self) -> None:
        """Note the file that is open, for `check`."""
        self._file = _identity(self.path)

    def check(self) -> None:
        """Raise LedgerError if the file at the ledger's path is no longer the one that is open."""
        try:
            status = self.path.stat()
            same = (status.st_dev, status.st_ino) == self._file
        except OSError:
            same = False
        if not same:
            raise LedgerError(
                f"The ledger's file {self.path} was moved, deleted or replaced while it was open: "
                "what was recorded since may be lost, nothing may be released. Start this process again once that "
                "is settled"
            )

    def signature(self) -> tuple[int, ...]:
        """Return a value that changes whenever somebody writes to the file, by SQLite or not."""
        status = self.path.stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    @contextmanager
    def afresh(self, timeout: float = 60.0) -> Iterator[sqlite3.Connection]:
        """Give another connection to the file, which holds nothing of it in memory yet; checked."""
        with _guard:
            second = _connect_in_place(self.path, "rw", timeout)
        try:
            _inspect(self.path, second.connection)
            second.connection.execute("PRAGMA query_only = ON")
            yield second.connection
        finally:
            second.close()

    def close(self) -> None:
        """Close the connection; idempotent."""
        release, self._release = self._release, lambda: None
        self.connection.close()
        release()

    def __del__(self) -> None:
        """A forgotten connection must not count as open for ever."""
        try:
            self.close()
        except Exception:  # the interpreter ends
            return


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
    return Database(path, connection, release)


def _inspect(path: Path, connection: sqlite3.Connection) -> None:
    """Check what the file defines, and its structure."""
    restrict(connection)
    check_schema(path, connection)
    problems = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
    if problems != ["ok"]:
        raise LedgerError(f"The ledger is damaged: {path}: {problems[0] if problems else '?'}")


def _open_for_reading(path: Path, timeout: float) -> Database:
    if _in_place[_identity(path)]:  # this process writes to it: nothing would be a trace
        return _inspected(_connect_in_place(path, "rw", timeout))
    copy = None
    if read_header(path).wal or ledger_snapshot.beside(path)[1].exists():
        copy = ledger_snapshot.copied(
            path, timeout
        )  # None where writers are at work: theirs is the trace
    return _inspected(
        _connect_in_place(path, "ro", timeout) if copy is None else Database(path, *copy)
    )


def _inspected(database: Database) -> Database:
    try:
        _inspect(database.path, database.connection)
        database.connection.execute("PRAGMA query_only = ON")
    except BaseException:
        database.close()
        raise
    return database


def _open_for_writing(path: Path, timeout: float) -> Database:
    _open_for_reading(path, timeout).close()
    database = _connect_in_place(path, "rw", timeout)
    try:
        db = database.connection
        restrict(db)
        db.execute("PRAGMA synchronous = EXTRA")
        mode = db.execute("PRAGMA journal_mode = DELETE").fetchone()[
            0
        ]  # of an earlier version: wal
        if mode != "delete":
            raise LedgerError(f"Expected journal mode delete, got {mode}: {path}")
        database.remember()
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


def open_database(
    path: Path, *, read_only: bool, timeout: float, before_creation: Callable[[], None]
) -> Database:
    """Open, and unless read_only create, a ledger's database.

    Read-only: the file, its folder and their times stay as they are, whatever is found; the rows
    are those that were durable at the call, and perhaps later ones.

    Args:
      before_creation: Called if there is no file; what it raises leaves none.

    Raises:
      LedgerError: The file is absent (read_only), foreign, damaged, of another schema version, not
        accessible, or to be written on a network file system. It is left untouched.
    """
    try:
        if not read_only:
            _refuse_network(path)
        with _guard:
            if not os.path.lexists(path):
                if read_only:
                    raise LedgerError(f"Expected a ledger, got no file: {path}")
                _create_unless_there(path, before_creation)
            require_plain_file(path)
            return (
                _open_for_reading(path, timeout) if read_only else _open_for_writing(path, timeout)
            )
    except (OSError, sqlite3.Error, UnicodeError) as error:
        raise LedgerError(f"Cannot open the ledger {path}: {error}") from error


def _create_unless_there(path: Path, before_creation: Callable[[], None]) -> None:
    try:
        before_creation()
    except LedgerError:
        if os.path.lexists(path):  # another process made it meanwhile, and its head
            return
        raise
    _create(path)
