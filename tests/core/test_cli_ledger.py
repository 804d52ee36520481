"""The commands that look at a ledger leave its folder as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from privacy.events import gaussian
from privacy.ledger import Ledger, LedgerEntry
from simulations.cli import app

COMMANDS = {
    "verify": ["ledger", "verify"],
    "show": ["ledger", "show"],
    "account": ["account", "--delta", "1e-5", "--ledger"],
}


def picture(folder: Path) -> dict[str, object]:
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()
    } | {".": folder.stat().st_mtime_ns}


def append_and_die(path: Path) -> None:
    """Two rows by a process that ends without closing the ledger: they are in the -wal alone."""
    child = os.fork()
    if child == 0:
        try:
            ledger = Ledger(path)
            for number in range(2):
                views = {"server": gaussian(4.0), "outsider": gaussian(4.0)}
                name = f"round-{number}"
                ledger.append(LedgerEntry("r", "a", "example", "train", number, name, views))
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("state", ["closed", "crashed", "damaged", "foreign"])
def test_looking_leaves_no_trace(command: str, state: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    append_and_die(path)
    if state != "crashed":
        Ledger(path).close()
    if state == "damaged":
        path.write_bytes(path.read_bytes()[:8192])
    if state == "foreign":
        path.write_text("dear diary\n" * 100)
    before = picture(tmp_path)
    done = CliRunner().invoke(app, [*COMMANDS[command], str(path)])
    assert picture(tmp_path) == before
    if state in ("closed", "crashed"):
        assert done.exit_code == 0, done.output
        assert "2 rows" in done.output or command == "account"
    else:
        assert done.exit_code != 0
        assert "ledger" in done.output
