"""A ledger that cannot grow: a clear error, nothing half-written, and it goes on when there is room."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from privacy.events import constructors as ev
from privacy.ledger.ledger import Ledger, LedgerEntry, LedgerError

STEP = ev.dp_sgd(0.01, 1.0, 4)


def entry(number: int, padding: int = 0) -> LedgerEntry:
    details = {"note": "x" * padding}
    views = {"server": STEP, "outsider": STEP}
    return LedgerEntry("run", "a", "example", "train", number, f"round-{number}", views, details)


def fill(path: Path) -> int:
    """Append until it fails, as it must; the number of entries that were recorded."""
    with Ledger(path) as ledger:
        for number in range(10_000):
            try:
                ledger.append(entry(number, 2000))
            except LedgerError:
                break
        else:
            raise AssertionError("the disk never filled")
        with pytest.raises(LedgerError, match=r"Cannot write the ledger .*ledger\.sqlite"):
            ledger.append(entry(number, 2000))
        with pytest.raises(LedgerError):  # one transaction: all or none
            ledger.extend(entry(n, 2000) for n in range(number, number + 400))
        return number


def check(path: Path, recorded: int) -> None:
    with Ledger(path, read_only=True) as ledger:
        report = ledger.verify()
        assert report.ok, report.problems
        assert report.rows == recorded
        assert [e.round for e in ledger.entries()] == list(range(recorded))


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """RLIMIT_FSIZE in a process of its own; then a process without it goes on."""
    path = tmp_path / "ledger.sqlite"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
            recorded = fill(path)
            check(path, recorded)
            status = 100 if recorded > 20 else 2
            (tmp_path / "recorded").write_text(str(recorded))
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 100
    recorded = int((tmp_path / "recorded").read_text())
    check(path, recorded)
    with Ledger(path) as ledger:
        assert ledger.append(entry(recorded, 2000))
    check(path, recorded + 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.append(entry(0, 2000))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(300_000))
    recorded = fill(path)
    assert recorded > 20
    check(path, recorded)
    ballast.unlink()
    with Ledger(path) as ledger:
        assert ledger.append(entry(recorded, 2000))
    check(path, recorded + 1)


def test_no_room_to_make_a_ledger(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(3 * 2**20))
    path = small_disk / "ledger.sqlite"
    with pytest.raises(LedgerError, match="Cannot open the ledger"):
        Ledger(path)
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]
