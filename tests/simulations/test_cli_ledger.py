"""``fedllm ledger verify`` and ``show``; and the commands that look at a ledger leave its folder as it was."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from accounting_commands import (
    DELTA,
    FIXED,
    call,
    call_json,
)
from ledger_rows import ADD
from typer.testing import CliRunner

from privacy.events.constructors import dp_sgd, gaussian, no_guarantee
from privacy.ledger.ledger import Ledger, LedgerEntry, LedgerRolledBack
from simulations.cli.main import app

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
    """Two rows by a process that ends without closing the ledger."""
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


def edit(path: Path, *statements: str) -> None:
    """Change rows as somebody with the file and SQLite can, the triggers put back afterwards."""
    db = sqlite3.connect(path)
    triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        assert db.execute(statement).rowcount > 0
    for _, sql in triggers:
        db.execute(sql)
    db.commit()
    db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET views = replace(views, '1.0', '9.0') WHERE id = 2",
        "DELETE FROM entries WHERE id = 2",
        "DELETE FROM entries WHERE id = 4",
    ],
)
def test_broken_chain(make_ledger: Callable[..., Path], statement: str) -> None:
    path = make_ledger(("alpha", dp_sgd(0.01, 1.0, 1), 4))
    whole = call("ledger", "verify", path)
    assert (whole.exit_code, whole.stderr) == (0, "")
    assert call_json("ledger", "verify", path)["ok"] is True
    edit(path, statement)
    broken = call("ledger", "verify", path)
    found = call_json("ledger", "verify", path, status=1)
    assert broken.exit_code == 1
    assert found["ok"] is False
    assert broken.stdout.splitlines() == [f"{path}: {problem}" for problem in found["problems"]]
    account = call_json("account", ledger=path, delta=DELTA, status=1)
    assert {account[name]["epsilon"] for name in FIXED} == {"Infinity"}
    assert "fails its verification" in account["no_guarantee"][0]
    printed = call("account", ledger=path, delta=DELTA)
    assert printed.exit_code == 1
    assert "NO GUARANTEE" in printed.stdout


def test_kept_head_notices_a_reset_ledger(make_ledger: Callable[..., Path], tmp_path: Path) -> None:
    path = make_ledger(("alpha", gaussian(4.0), 2))
    head = call_json("ledger", "verify", path)["head"]
    kept = {"kept-head": f"{head['id']}:{head['hash']}"}
    make_ledger(("alpha", gaussian(4.0), 2))
    assert call("ledger", "verify", path, **kept).exit_code == 0
    for leftover in tmp_path.glob("ledger.sqlite*"):
        leftover.unlink()
    make_ledger(("alpha", gaussian(4.0), 2))
    assert call("ledger", "verify", path).exit_code == 0
    assert call("ledger", "verify", path, **kept).exit_code == 1


def test_damaged_and_foreign_files(make_ledger: Callable[..., Path], tmp_path: Path) -> None:
    path = make_ledger(("alpha", dp_sgd(0.01, 1.0, 1), 200))
    damaged = tmp_path / "damaged.sqlite"
    shutil.copy(path, damaged)
    content = damaged.read_bytes()
    damaged.write_bytes(content[:16384] + b"\xa5" * (len(content) - 16384))
    result = call("ledger", "verify", damaged)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) >= 1
    assert call_json("account", ledger=damaged, delta=DELTA, status=1)["chain"]["ok"] is False
    foreign = tmp_path / "notes.txt"
    foreign.write_text("not a ledger\n" * 20)
    for words in (("ledger", "verify", foreign), ("ledger", "show", foreign)):
        result = call(*words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "not SQLite" in result.stderr
    assert foreign.read_text() == "not a ledger\n" * 20


def test_show(make_ledger: Callable[..., Path]) -> None:
    path = make_ledger(
        ("alpha", dp_sgd(0.25, 1.5, 4), 3), ("beta", no_guarantee("counts [as they are]"), 1)
    )
    printed = " ".join(call("ledger", "show", path).stdout.replace("│", " ").split())
    assert "Gaussian mechanism, noise multiplier 1.5" in printed
    assert "counts [as they are]" in printed
    assert "the last" not in printed
    found = call_json("ledger", "show", path, party="alpha", limit=2)
    assert found["rows"] == 3
    assert [entry["id"] for entry in found["entries"]] == [2, 3]
    assert found["entries"][0]["views"]["server"]["count"] == 4
    assert found["entries"][0]["details"] == ADD
    assert "the last 1 of 4 rows" in call("ledger", "show", path, limit=1).stdout


def test_a_ledger_put_back_is_adopted_as_the_refusal_says(
    make_ledger: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_ledger(("alpha", gaussian(4.0), 2))
    old = path.read_bytes()
    make_ledger(("alpha", gaussian(4.0), 1))
    path.write_bytes(old)
    broken = call("ledger", "verify", path)
    assert broken.exit_code == 1
    assert "records a row 3 that it lacks" in broken.stdout
    account = call_json("account", ledger=path, delta=DELTA, status=1)
    assert "records a row 3" in account["no_guarantee"][0]
    assert "FAILS its verification" in call("ledger", "show", path).stdout
    with pytest.raises(LedgerRolledBack) as refused:
        Ledger(path)
    words = shlex.split(str(refused.value).split("records: fedllm ", 1)[1])
    done = call(*words[:-1], "the backup of Monday")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "adopted; row 3 records the reason" in done.stdout
    whole = call_json("ledger", "verify", path)
    assert whole["ok"] is True
    assert "because: the backup of Monday; rows up to number 3" in whole["adoptions"][0]
    assert "the backup of Monday" in call("ledger", "show", path).stdout
    assert call_json("ledger", "show", path)["rows"] == 2  # no release
    assert call_json("account", ledger=path, delta=DELTA)["parties"]["alpha"]["rows"] == 2
    again = call("ledger", "adopt", path, because="again")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "needs to be adopted" in again.stderr


def test_a_copy_alone_is_whole_and_says_that_nothing_vouches_for_its_end(
    make_ledger: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_ledger(("alpha", gaussian(4.0), 2))
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    found = call("ledger", "verify", copy)
    assert found.exit_code == 0
    assert "2 rows, the chain is whole" in found.stdout
    assert "copy.sqlite.head is missing" in found.stdout
    with pytest.raises(LedgerRolledBack, match="is missing: it is a copy"):
        Ledger(copy)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"because": " "}, "--because"),
        ({"because": "why", "head": "12"}, "ROWS:HASH"),
        ({"because": "why"}, "got neither"),
    ],
)
def test_what_is_no_adoption(tmp_path: Path, options: dict[str, str], why: str) -> None:
    refused = call("ledger", "adopt", tmp_path / "none.sqlite", **options)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert why in refused.stderr
    assert list(tmp_path.iterdir()) == []
