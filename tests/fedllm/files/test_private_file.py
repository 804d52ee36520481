"""What belongs to a silo alone can be read by its owner alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedllm.data.silos import load_federation
from fedllm.files.private import append_private
from fedllm.silo.silo import SiloWorker


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """Files are readable by everybody unless the code says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_silos_log_and_its_folder_are_private(
    tiny_settings: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = tiny_settings()
    log = tmp_path / "run" / "silo-logs" / "alpha.jsonl"
    worker = SiloWorker(
        settings,
        load_federation(settings).silos[0],
        run="r",
        ledger=tmp_path / "ledger.sqlite",
        log=log,
    )
    worker.note_error("first", ValueError("x"))
    worker.note_error("second", ValueError("half an emoji: \ud83d"))
    assert "half an emoji: \\ud83d" in caplog.text.encode("utf-8").decode()
    assert mode(log) == 0o600
    assert mode(log.parent) == 0o700
    assert len(log.read_text(encoding="utf-8").splitlines()) == 2


def test_a_file_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    log = tmp_path / "rounds.jsonl"
    log.write_text("one\n", encoding="utf-8")
    log.chmod(0o640)
    append_private(log, "two \ud83d\n")
    assert mode(log) == 0o640
    assert log.read_text(encoding="utf-8") == "one\ntwo \\ud83d\n"
