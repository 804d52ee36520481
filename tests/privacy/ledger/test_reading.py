"""Reading a ledger leaves no trace, and never shows fewer rows than are durable."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from privacy.events import constructors as ev
from privacy.ledger import storage as ledger_file
from privacy.ledger.ledger import Ledger, LedgerEntry, LedgerError, LedgerRolledBack

ROOT = Path(__file__).resolve().parents[3]
STEP = ev.dp_sgd(0.01, 1.0, 4)


def entry(number, party="a"):
    views = {"server": STEP, "outsider": STEP}
    return LedgerEntry("run", party, "example", "train", number, f"round-{number}", views)


WRITER = """
import sys
from privacy.events import constructors as ev
from privacy.ledger.ledger import Ledger, LedgerEntry
STEP = ev.dp_sgd(0.01, 1.0, 4)
def entry(number, party="a"):
    views = {"server": STEP, "outsider": STEP}
    return LedgerEntry("run", party, "example", "train", number, f"round-{number}", views)
path, first, count, then = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ledger = Ledger(path)
for number in range(first, first + count):
    ledger.append(entry(number))
    print(number, flush=True)
if then == "wait":
    sys.stdin.read()
ledger.close()
"""


def writer(path, first, count, then="end"):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(first), str(count), then],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(process, number):
    for line in process.stdout:
        if int(line) >= number:
            return
    raise AssertionError("the writer ended too early")


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "ledger.sqlite"


TORN = """
import os, signal, sys
from privacy.ledger.hash_chain import insert_rows
from test_reading import entry
from privacy.ledger.ledger import Ledger
ledger = Ledger(sys.argv[1])
db = ledger._db.connection
db.execute("PRAGMA cache_size = 1")  # pages go to the file before the commit
db.execute("BEGIN IMMEDIATE")
insert_rows(db, ledger.head(), [entry(number).content() for number in range(100, 400)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def crashed(path, count=5):
    """A ledger whose writer was killed in the midst of a commit of 300 rows: the file holds many of them."""
    with Ledger(path) as ledger:
        ledger.extend(entry(number) for number in range(count))
    tests = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
    killed = subprocess.run(
        [sys.executable, "-c", TORN, str(path)], env=os.environ | {"PYTHONPATH": tests}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert path.stat().st_size > 100_000
    assert Path(f"{path}-journal").stat().st_size > 0


def earlier_version(path, count=5):
    """A ledger as earlier versions left it when killed: rows in the -wal alone, and no head."""
    with Ledger(path) as ledger:
        ledger.append(entry(0))
    Path(f"{path}.head").unlink()
    script = """
import os, signal, sqlite3, sys
from privacy.ledger.hash_chain import insert_rows
from privacy.ledger.heads import Head
from test_reading import entry
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA user_version = 1")
db.execute("PRAGMA journal_mode = WAL")
db.execute("BEGIN IMMEDIATE")
head = Head(*db.execute("SELECT id, hash FROM entries").fetchone())
insert_rows(db, head, [entry(number).content() for number in range(1, int(sys.argv[2]))])
db.execute("COMMIT")
os.kill(os.getpid(), signal.SIGKILL)
"""
    tests = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
    command = [sys.executable, "-c", script, str(path), str(count)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": tests}, check=False)
    assert Path(f"{path}-wal").stat().st_size > 0


def picture(folder):
    """Everything about a folder that reading must leave alone."""
    return {
        p.name: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ctime_ns, p.stat().st_mode)
        for p in folder.iterdir()
    } | {".": folder.stat().st_mtime_ns}


def read(path):
    with Ledger(path, read_only=True) as ledger:
        report = ledger.verify()
        assert report.ok, report.problems
        assert sum(ledger.spent("server").values()) == 4 * report.rows
        assert len(ledger.entries()) == report.rows
        return report.rows


@pytest.fixture
def own_temporary_folder(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_closed_ledger_is_read_without_a_trace(path, own_temporary_folder):
    with Ledger(path) as ledger:
        ledger.extend(entry(i) for i in range(3))
    before = picture(path.parent)
    assert set(before) == {path.name, f"{path.name}.head", "."}
    assert read(path) == 3
    assert picture(path.parent) == before
    assert list(own_temporary_folder.iterdir()) == []


@pytest.mark.parametrize("make", [crashed, earlier_version])
def test_rows_of_a_crashed_writer_are_seen_without_a_trace(path, make, own_temporary_folder):
    make(path)
    before = picture(path.parent)
    assert read(path) == 5
    assert picture(path.parent) == before
    assert list(own_temporary_folder.iterdir()) == []
    with Ledger(path) as ledger:  # and the next writer goes on from there
        assert not ledger.append(entry(4))
        assert ledger.append(entry(5))
    assert read(path) == 6
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}.head"}


def test_a_ledger_of_an_earlier_version_is_complete_once_it_was_opened(path):
    earlier_version(path)
    with Ledger(path, read_only=True) as ledger:
        assert ledger.verify().notes == []  # it never had a head
    Ledger(path).close()
    (path.parent / "alone.sqlite").write_bytes(path.read_bytes())
    with Ledger(path.parent / "alone.sqlite", read_only=True) as ledger:
        assert ledger.verify().rows == 5
        assert "is missing" in ledger.verify().notes[0]
    with pytest.raises(LedgerRolledBack, match="is missing: it is a copy"):
        Ledger(path.parent / "alone.sqlite")


def test_an_idle_writer_is_not_disturbed(path):
    process = writer(path, 0, 4, "wait")
    try:
        wait_for(process, 3)
        before = picture(path.parent)
        assert read(path) == 4
        assert picture(path.parent) == before
    finally:
        process.communicate("", timeout=60)
    assert process.returncode == 0
    assert read(path) == 4


def test_a_busy_writer_never_hides_a_durable_row(path):
    process = writer(path, 0, 10**6)
    try:
        for _ in range(5):
            released = [int(process.stdout.readline()) for _ in range(20)][-1]
            with Ledger(path, read_only=True) as ledger:  # later rows may be seen, too
                report = ledger.verify()
                assert report.ok, report.problems
                assert report.rows > released
                assert sum(ledger.spent("server").values()) >= 4 * report.rows
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("state", ["closed", "crashed"])
def test_a_folder_and_a_file_that_may_only_be_read(state):
    """In a process without the right to write anything there (root may always write)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "ledger.sqlite"
        crashed(path)
        if state == "closed":
            Ledger(path).close()
            assert not Path(f"{path}-journal").exists()
        for file in folder.iterdir():
            file.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        folder.chmod(0o555)
        before = picture(folder)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                assert not os.access(folder, os.W_OK)
                assert not os.access(path, os.W_OK)
                status = 0 if read(path) == 5 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert picture(folder) == before
        folder.chmod(0o755)


@pytest.mark.parametrize("damage", ["none", "cut", "scribble", "cut header", "foreign", "empty"])
@pytest.mark.parametrize("state", ["closed", "crashed"])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_damaged_or_foreign_file_is_not_touched(path, damage, state, read_only):
    crashed(path, 5)
    if state == "closed":
        with Ledger(path) as ledger:
            ledger.extend(entry(i) for i in range(300))
    content = bytearray(path.read_bytes())
    Path(f"{path}-journal").unlink(missing_ok=True)  # else its pages heal the damage
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "scribble":
        content[4096:] = b"\xff" * (len(content) - 4096)
    elif damage == "cut header":
        content = content[:50]
    elif damage == "foreign":
        content[68:72] = b"else"
    elif damage == "empty":
        content = bytearray()
    if (damage, state) == ("none", "closed"):
        return
    path.write_bytes(content)  # undamaged, of a crashed writer: a commit that nothing can undo
    before = picture(path.parent)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite"):
        Ledger(path, read_only=read_only)
    assert picture(path.parent) == before


def test_closing_another_object_frees_no_lock_of_this_one(path):
    """A second ledger object in a process, then the first one's file read and closed: SQLite's locks of a
    transaction in progress must survive it, or another process writes into the midst of it."""
    one, two = Ledger(path), Ledger(path)
    one.append(entry(0))
    with one._transaction():
        Ledger(path, read_only=True).close()
        Ledger(path).close()
        two.close()
        other = writer(path, 1, 1)
        with pytest.raises(subprocess.TimeoutExpired):
            other.communicate(timeout=6)  # it waits
    assert other.communicate(timeout=60)[0] == "1\n"
    one.append(entry(2))
    other = writer(path, 3, 1)  # another process sees all of it
    assert other.communicate(timeout=60)[0] == "3\n"
    one.close()
    assert read(path) == 4


@pytest.mark.parametrize("what", ["deleted", "replaced", "copied back"])
def test_a_ledger_that_is_taken_away_refuses_the_release(path, what, tmp_path):
    ledger = Ledger(path)
    ledger.append(entry(0))
    path.rename(tmp_path / "elsewhere.sqlite")
    if what == "replaced":
        Path(f"{path}.head").unlink()
        Ledger(path).close()
    elif what == "copied back":
        path.write_bytes((tmp_path / "elsewhere.sqlite").read_bytes())
    with pytest.raises(LedgerError, match=r"moved, deleted or replaced|row 1 that it lacks"):
        ledger.append(entry(1))
    ledger.close()


def test_a_forgotten_ledger_does_not_count_as_open(path):
    ledger = Ledger(path)
    identity = (path.stat().st_dev, path.stat().st_ino)
    assert ledger_file._in_place[identity] == 1
    del ledger
    assert ledger_file._in_place[identity] == 0
