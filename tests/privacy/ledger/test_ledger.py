"""The ledger: append-only, idempotent, chained; foreign and damaged files are left alone."""

from __future__ import annotations

import hashlib
import sqlite3

import pytest

from privacy.events import constructors as ev
from privacy.events.multiset import multiset
from privacy.events.serialization import UnknownEvent
from privacy.guarantee import Unit
from privacy.ledger import schema as ledger_schema
from privacy.ledger.ledger import (
    Head,
    Ledger,
    LedgerConflict,
    LedgerEntry,
    LedgerError,
    LedgerRolledBack,
    composed,
)

STEP = ev.dp_sgd(0.01, 1.0, 4)
PLAIN = ev.gaussian(2.0)


def entry(number=0, party="a", run="run", unit=Unit.EXAMPLE, views=None, **changes):
    values = {
        "run": run,
        "party": party,
        "unit": unit,
        "purpose": "train",
        "round": number,
        "key": f"round-{number}",
        "views": views or {"server": STEP, "outsider": STEP},
        "details": {"clip_norm": 0.5},
    }
    return LedgerEntry(**(values | changes))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "ledger.sqlite"


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_entries_come_back_as_they_were(path):
    with Ledger(path) as ledger:
        first = entry(details={"clip_norm": 0.1, "sampler": "poisson", "n": 3, "x": None})
        assert ledger.append(first)
        assert ledger.append(entry(1, party="b", unit="client"))
    with Ledger(path, read_only=True) as ledger:
        found = ledger.entries()
        assert found == [first, entry(1, party="b", unit="client")]
        assert [e.id for e in found] == [1, 2]
        assert all(e.time and e.hash for e in found)
        assert ledger.entries(party="b") == [found[1]]
        assert ledger.entries(unit=Unit.EXAMPLE) == [found[0]]
        assert ledger.entries(run="other") == []
        assert ledger.parties() == ["a", "b"]


def test_the_same_entry_again_is_no_new_row(path):
    with Ledger(path) as ledger:
        assert ledger.append(entry())
        assert not ledger.append(entry())
    with Ledger(path) as ledger:  # after a restart too
        assert not ledger.append(entry())
        assert len(ledger.entries()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"views": {"server": PLAIN, "outsider": PLAIN}},
        {"purpose": "evaluate"},
        {"round": 5},
        {"unit": Unit.CLIENT},
        {"details": {}},
    ],
)
def test_the_same_key_with_other_content_is_a_conflict(path, changes):
    with Ledger(path) as ledger:
        ledger.append(entry())
        with pytest.raises(LedgerConflict, match="round-0"):
            ledger.append(entry(**changes))
        assert ledger.entries() == [entry()]


def test_two_runs_on_one_ledger_compose(path):
    with Ledger(path) as ledger:
        assert ledger.append(entry(run="one"))
        assert ledger.append(entry(run="two"))
        assert sum(ledger.spent("server", party="a").values()) == 8


def test_extend_is_all_or_nothing(path):
    with Ledger(path) as ledger:
        ledger.append(entry(3))
        with pytest.raises(LedgerConflict):
            ledger.extend([entry(1), entry(3, purpose="other"), entry(2)])
        assert ledger.entries() == [entry(3)]
        assert ledger.extend([entry(1), entry(3), entry(2), entry(2)]) == 2
        assert ledger.verify().ok


def test_spent_is_composed_entries(path):
    other = {"server": PLAIN, "outsider": ev.gaussian(9.0), "colluding:2": ev.gaussian(1.0)}
    with Ledger(path) as ledger:
        ledger.extend([entry(i) for i in range(5)] + [entry(i, views=other) for i in (7, 8)])
        for adversary in ("server", "outsider"):
            assert ledger.spent(adversary) == composed(ledger.entries(), adversary)
        assert ledger.spent("server")[PLAIN] == 2
        assert ledger.spent("outsider")[ev.gaussian(9.0)] == 2


def test_views_fall_back_to_a_stronger_adversary_only():
    views = {
        "server": ev.gaussian(3.0),
        "outsider": ev.gaussian(5.0),
        "colluding:2": ev.gaussian(2.0),
        "colluding:4": ev.gaussian(1.0),
    }
    one = entry(views=views)
    assert one.view("outsider") == ev.gaussian(5.0)
    assert one.view("server") == ev.gaussian(3.0)
    assert one.view("colluding:1") == ev.gaussian(2.0)
    assert one.view("colluding:2") == ev.gaussian(2.0)
    assert one.view("colluding:3") == ev.gaussian(1.0)
    for who in ("sum-only", "sum-only:1", "sum-only:99"):  # a row of before has no such view
        assert one.view(who) == ev.gaussian(3.0)
    summed = entry(views=views | {"sum-only": ev.gaussian(9.0), "sum-only:2": ev.gaussian(7.0)})
    assert summed.view("sum-only") == ev.gaussian(9.0)
    assert summed.view("sum-only:1") == summed.view("sum-only:2") == ev.gaussian(7.0)
    assert summed.view("sum-only:3") == summed.view("server") == ev.gaussian(3.0)
    assert summed.view("outsider") == ev.gaussian(5.0)
    with pytest.raises(LedgerError, match="colluding:5"):
        one.view("colluding:5")
    with pytest.raises(LedgerError, match="colluding:5"):
        composed([one], "colluding:5")


def test_units_do_not_compose(path):
    mixed = [entry(0), entry(1, unit=Unit.CLIENT)]
    with pytest.raises(LedgerError, match="unit"):
        composed(mixed, "server")
    with Ledger(path) as ledger:
        ledger.extend(mixed)
        with pytest.raises(LedgerError, match="unit"):
            ledger.spent("server")
        assert ledger.spent("server", unit=Unit.CLIENT) == multiset(STEP)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"run": ""}, "run"),
        ({"party": 3}, "party"),
        ({"key": ""}, "key"),
        ({"round": -1}, "round"),
        ({"round": 1.0}, "round"),
        ({"unit": "user"}, "user"),
        ({"views": {"server": STEP}}, "outsider"),
        ({"views": {"server": STEP, "outsider": STEP, "all": STEP}}, "adversary"),
        ({"details": {"x": [1]}}, "details"),
        ({"details": {"x": float("nan")}}, "finite"),
    ],
)
def test_bad_entries_are_refused(changes, name):
    with pytest.raises(ValueError, match=name):
        entry(**changes)


def test_an_unknown_event_is_refused_before_anything_is_written(path):
    with Ledger(path) as ledger:
        with pytest.raises(UnknownEvent):
            ledger.append(entry(views={"server": ev.dp.UnsupportedDpEvent(), "outsider": STEP}))
        assert ledger.entries() == []


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries WHERE id = 1",
        "UPDATE entries SET views = '{}'",
        "UPDATE entries SET hash = 'x' WHERE id = 2",
        "DELETE FROM head",
        "UPDATE head SET id = 0",
        "INSERT INTO entries SELECT 9, time, run, party, unit, purpose, round, 'k9', views, "
        "details, previous, hash FROM entries WHERE id = 1",
    ],
)
def test_the_database_itself_refuses_changes(path, statement):
    with Ledger(path) as ledger:
        ledger.extend([entry(0), entry(1)])
    db = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.execute(statement)
    db.close()
    with Ledger(path) as ledger:
        assert ledger.verify().ok


def tamper(path, *statements):
    db = sqlite3.connect(path)
    triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        db.execute(statement)
    for _, sql in triggers:
        db.execute(sql)
    db.commit()
    db.close()


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (["DELETE FROM entries WHERE id = 2"], "rows 2 to 2 are missing"),
        (["DELETE FROM entries WHERE id = 4"], "missing or added"),
        (["UPDATE entries SET round = 9 WHERE id = 3"], "row 3 was edited"),
        (["UPDATE entries SET time = 'x' WHERE id = 3"], "row 3 was edited"),
        (["UPDATE entries SET hash = 'x' WHERE id = 3"], "row 3 was edited"),
        (
            ["DELETE FROM entries WHERE id = 2", "UPDATE entries SET id = id - 1 WHERE id > 2"],
            "row 2 does not follow",
        ),
        (["UPDATE head SET hash = 'x'"], "recorded head"),
        (["DELETE FROM head"], "recorded head"),
        (["UPDATE entries SET views = '{\"server\": 1}' WHERE id = 1"], "cannot be read"),
    ],
)
def test_verify_shows_tampering(path, statements, problem):
    with Ledger(path) as ledger:
        ledger.extend([entry(i) for i in range(4)])
        assert ledger.verify().ok
    tamper(path, *statements)
    with Ledger(path, read_only=True) as ledger:
        report = ledger.verify()
    assert not report.ok
    assert any(problem in p for p in report.problems), report.problems


def test_a_kept_head_shows_a_reset_and_a_rewritten_ledger(path):
    with Ledger(path) as ledger:
        ledger.extend([entry(i) for i in range(3)])
        head = ledger.head()
        ledger.append(entry(3))
        assert ledger.verify(head).ok
        assert ledger.verify().head == ledger.head()
    for file in list(path.parent.iterdir()):  # the head beside it, too
        file.unlink()
    with Ledger(path) as ledger:  # a silently reset ledger, filled anew
        ledger.extend([entry(i) for i in range(4)])
        assert ledger.verify().ok
        report = ledger.verify(head)
    assert not report.ok
    assert "reset or rewritten" in report.problems[0]


def test_an_empty_ledger_verifies(path):
    with Ledger(path) as ledger:
        report = ledger.verify()
        assert (report.ok, report.rows, report.head) == (True, 0, (0, "0" * 64))
        assert ledger.spent("server") == {}


def test_read_only_neither_creates_nor_writes(path):
    with pytest.raises(LedgerError, match="no file"):
        Ledger(path, read_only=True)
    assert not path.exists()
    Ledger(path).close()
    with Ledger(path, read_only=True) as ledger, pytest.raises(LedgerError, match="read-only"):
        ledger.append(entry())


def test_a_closed_ledger_says_so(path):
    ledger = Ledger(path)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.append(entry())
    with pytest.raises(LedgerError, match="closed"):
        ledger.entries()


def make_foreign(path, kind):
    if kind == "text":
        path.write_text("dear diary\n" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "short":
        path.write_bytes(b"SQLite format 3\x00")
    else:
        db = sqlite3.connect(path)
        if kind == "version":
            db.executescript(ledger_schema.SCHEMA)
            db.execute("PRAGMA user_version = 99")
        else:
            db.execute("CREATE TABLE entries (id INTEGER)")
        db.commit()
        db.close()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "not SQLite"),
        ("empty", "not SQLite"),
        ("short", "not SQLite"),
        ("other", "another application"),
        ("version", "version 99"),
    ],
)
@pytest.mark.parametrize("read_only", [True, False])
def test_a_foreign_file_is_refused_and_untouched(tmp_path, kind, message, read_only):
    path = tmp_path / "ledger.sqlite"
    make_foreign(path, kind)
    before = digest(path)
    with pytest.raises(LedgerError, match=message):
        Ledger(path, read_only=read_only)
    assert digest(path) == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["cut", "scribble"])
def test_a_damaged_file_is_refused_and_untouched(path, damage):
    with Ledger(path) as ledger:
        ledger.extend([entry(i) for i in range(300)])
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        for start in range(4096, len(content), 4096):
            content[start : start + 600] = b"\xff" * 600
    path.write_bytes(content)
    before = digest(path)
    with pytest.raises(LedgerError, match="ledger"):
        Ledger(path)
    assert digest(path) == before


def test_a_ledger_without_its_triggers_is_refused(path):
    Ledger(path).close()
    db = sqlite3.connect(path)
    db.execute("DROP TRIGGER entries_keep_rows")
    db.commit()
    db.close()
    with pytest.raises(LedgerError, match="entries_keep_rows"):
        Ledger(path)


def test_durability_settings(path):
    with Ledger(path) as ledger:
        db = ledger._db.connection
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert db.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA


def test_a_folder_that_cannot_be_written_gives_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="Cannot open"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


def test_paths_with_odd_characters(tmp_path):
    path = tmp_path / "a ?#%20 é.sqlite"
    with Ledger(path) as ledger:
        ledger.append(entry())
    assert path.exists()
    with Ledger(path, read_only=True) as ledger:
        assert len(ledger.entries()) == 1


def test_many_identical_rows_are_counted_fast(path):
    with Ledger(path) as ledger:
        ledger.extend([entry(i) for i in range(5000)])
        assert ledger.spent("server") == {next(iter(multiset(STEP))): 20000}


def test_a_ledger_holds_each_head_that_it_had_and_no_other(path):
    heads = []
    with Ledger(path) as ledger:
        heads.append(ledger.head())
        for number in range(4):
            ledger.append(entry(number))
            heads.append(ledger.head())
        assert ledger.verify().notes == []
        for head in heads:
            ledger.require_contains(head, "the server")
            assert Head.parse(str(head)) == head
        for head in (Head(5, heads[4].hash), Head(3, heads[4].hash), Head(0, heads[1].hash)):
            assert not ledger.holds(head)
            with pytest.raises(LedgerRolledBack, match=r"not row \d as the server knows it"):
                ledger.require_contains(head, "the server")


@pytest.mark.parametrize("text", ["", "1", "1:", "1:xy", "-1:" + "0" * 64, "1:" + "0" * 65])
def test_what_is_no_head_is_refused(text):
    with pytest.raises(ValueError, match="ROWS:HASH"):
        Head.parse(text)
