"""What can happen to a ledger's file between two releases, by accident or on purpose.

Each takes a :class:`Site` whose ledger has six rows, and of which a backup was made at three.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy.events import constructors as ev
from privacy.ledger.entry import canonical_json
from privacy.ledger.hash_chain import COLUMNS, insert_rows, row_hash
from privacy.ledger.ledger import Head, Ledger, LedgerEntry
from privacy.ledger.schema import SCHEMA


def entry(number: int, noise: float = 1.0) -> LedgerEntry:
    step = ev.dp_sgd(0.01, noise, 4)
    views = {"server": step, "outsider": step}
    details = {"noise_multiplier": noise}
    return LedgerEntry("run", "a", "example", "train", number, f"round-{number}", views, details)


@dataclass
class Site:
    """A silo's folder with its ledger, its state folder away from it, and what is elsewhere."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "data" / "ledger.sqlite"

    @property
    def head(self) -> Path:
        return self.folder / "data" / "ledger.sqlite.head"

    @property
    def kept(self) -> Path:
        return self.folder / "state" / "ledger.head"

    @property
    def backup(self) -> Path:
        return self.folder / "backup"

    def open(self) -> Ledger:
        return Ledger(self.path, kept=(self.kept,))

    def read(self) -> list[LedgerEntry]:
        with Ledger(self.path, read_only=True) as ledger:
            return ledger.entries()


def make_site(folder: Path) -> Site:
    site = Site(folder)
    with site.open() as ledger:
        ledger.extend(entry(number) for number in range(3))
        shutil.copytree(site.path.parent, site.backup)
        ledger.extend(entry(number) for number in range(3, 6))
    return site


def statements(site: Site, *texts: str) -> None:
    """Run SQL as somebody who can write the file does, the triggers put back afterwards."""
    db = sqlite3.connect(site.path)
    triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    for text in texts:
        db.execute(text)
    for _, sql in triggers:
        db.execute(sql)
    db.commit()
    db.close()


def old_bytes(site: Site) -> None:
    site.path.write_bytes((site.backup / site.path.name).read_bytes())


def old_bytes_and_head(site: Site) -> None:
    old_bytes(site)
    site.head.write_bytes((site.backup / site.head.name).read_bytes())


def restored(site: Site) -> None:
    shutil.copy(site.backup / site.path.name, site.folder / "new")
    os.replace(site.folder / "new", site.path)


def deleted(site: Site) -> None:
    site.path.unlink()


def deleted_with_head(site: Site) -> None:
    site.path.unlink()
    site.head.unlink()


def anew(site: Site) -> None:
    deleted_with_head(site)
    Ledger(site.path).close()


def anew_and_filled(site: Site) -> None:
    deleted_with_head(site)
    with Ledger(site.path) as ledger:
        ledger.extend(entry(number, 9.0) for number in range(6))


def edited(site: Site) -> None:
    """Noise 1 becomes 9, in the view: the least that an honest mistake of a tool could do."""
    statements(site, "UPDATE entries SET views = replace(views, ':1.0', ':9.0') WHERE id = 2")


def edited_to_bytes(site: Site) -> None:
    """A text of a row becomes bytes, which JSON cannot write."""
    statements(site, "UPDATE entries SET views = CAST(views AS BLOB) WHERE id = 2")


def edited_to_infinity(site: Site) -> None:
    statements(site, "UPDATE entries SET round = 9e999 WHERE id = 2")


def edited_bytes(site: Site) -> None:
    """The same, past SQLite: no counter of the file changes."""
    data = site.path.read_bytes()
    found = b'noise_multiplier\\":1.0'
    assert data.count(found) >= 6
    site.path.write_bytes(data.replace(found, found.replace(b"1.0", b"9.0"), 1))


def edited_and_chained(site: Site) -> None:
    """Every hash made anew: the chain is whole."""
    edited(site)
    db = sqlite3.connect(site.path)
    rows = db.execute(f"SELECT {COLUMNS} FROM entries ORDER BY id").fetchall()
    db.close()
    previous, texts = "0" * 64, []
    names = ("run", "party", "unit", "purpose", "round", "key", "views", "details")
    for row in rows:
        digest = row_hash(previous, row[0], row[1], dict(zip(names, row[2:10], strict=True)))
        texts.append(
            f"UPDATE entries SET previous = '{previous}', hash = '{digest}' WHERE id = {row[0]}"
        )
        previous = digest
    statements(site, *texts, f"UPDATE head SET hash = '{previous}'")


def last_row_cut_off(site: Site) -> None:
    statements(
        site,
        "DELETE FROM entries WHERE id = 6",
        "UPDATE head SET id = 5, hash = (SELECT hash FROM entries WHERE id = 5)",
    )


def last_row_gone(site: Site) -> None:
    statements(site, "DELETE FROM entries WHERE id = 6")


def row_before_the_first(site: Site) -> None:
    statements(site, "UPDATE entries SET id = -1 WHERE id = 1")


def truncated(site: Site) -> None:
    with site.path.open("r+b") as file:
        file.truncate(site.path.stat().st_size // 2)


def forked(site: Site) -> None:
    """The copy of a machine that went on by itself comes back in the place of this one."""
    elsewhere = Site(site.folder / "elsewhere")
    shutil.copytree(site.backup, elsewhere.path.parent)
    with Ledger(elsewhere.path) as ledger:
        ledger.extend(entry(number) for number in range(100, 104))
    shutil.copy(elsewhere.path, site.path)
    shutil.copy(elsewhere.head, site.head)


def head_lost(site: Site) -> None:
    site.head.unlink()


def kept_head_lost(site: Site) -> None:
    """A ledger that was moved to another machine, with what lies beside it."""
    site.kept.unlink()


def head_damaged(site: Site) -> None:
    data = bytearray(site.head.read_bytes())
    data[30] ^= 1
    site.head.write_bytes(data)


def head_cut(site: Site) -> None:
    site.head.write_bytes(site.head.read_bytes()[:100])


def head_is_a_pipe(site: Site) -> None:
    site.head.unlink()
    os.mkfifo(site.head)


ROLLED_BACK = r"it has \d rows, and .*head records a row 6 that it lacks"
ADOPTABLE: dict[Callable[[Site], None], str] = {
    old_bytes: ROLLED_BACK,
    old_bytes_and_head: ROLLED_BACK,
    restored: ROLLED_BACK,
    deleted: "is missing: it was deleted or moved, .* records 6 rows",
    deleted_with_head: "is missing: it was deleted or moved, .* records 6 rows",
    anew: ROLLED_BACK,
    anew_and_filled: ROLLED_BACK,
    edited_and_chained: ROLLED_BACK,
    last_row_cut_off: ROLLED_BACK,
    forked: ROLLED_BACK,
    head_lost: "is missing: it is a copy, or was restored or moved",
    kept_head_lost: "is missing: it is a copy, or was restored or moved",
    head_damaged: "got a damaged file",
    head_cut: "got a damaged file",
    head_is_a_pipe: "got no plain file",
}
"""What happened to the ledger, and what is said; it may be adopted."""
BROKEN: dict[Callable[[Site], None], str] = {
    edited: "row 2 was edited",
    edited_to_bytes: "row 2 was edited",
    edited_to_infinity: "row 2 was edited",
    edited_bytes: r"row \d was edited",
    last_row_gone: "rows at the end are missing or added",
    row_before_the_first: "are missing",
    truncated: "ledger",
}
"""The same where nothing of it can be trusted."""


# -- files from elsewhere ------------------------------------------------------------------------


def hostile_rows(site: Site, *contents: dict[str, Any]) -> None:
    """A ledger with a whole chain, of rows that nobody of us writes."""
    for file in (site.path, site.head, site.kept):
        file.unlink()
    db = sqlite3.connect(site.path)
    db.executescript(SCHEMA)
    insert_rows(db, Head(0, "0" * 64), [entry(0).content() | changes for changes in contents])
    db.commit()
    db.close()


def deep_view(site: Site) -> None:
    tree = '{"kind":"SelfComposed","count":1,"event":' * 5000 + '{"kind":"NoOp"}' + "}" * 5000
    hostile_rows(site, {"views": canonical_json({"server": tree, "outsider": tree})})


def deep_json(site: Site) -> None:
    hostile_rows(site, {"views": "[" * 100_000 + "]" * 100_000})


def deep_details(site: Site) -> None:
    hostile_rows(site, {"details": '{"a":' * 50_000 + "1" + "}" * 50_000})


def quotes_without_end(site: Site) -> None:
    hostile_rows(site, {"details": '"' + '\\"' * 400_000 + "\\"})


def endless_views(site: Site) -> None:
    view = '{"kind":"NoOp"}'
    views = {"server": view, "outsider": view}
    views |= {f"colluding:{number}": view for number in range(20_000)}
    hostile_rows(site, {"views": canonical_json(views)})


def giant_value(site: Site) -> None:
    hostile_rows(site, {"details": canonical_json({"note": "x" * (8 << 20)})})


def long_name(site: Site) -> None:
    hostile_rows(site, {"run": "r" * 100_000})


def view_of_numbers(site: Site) -> None:
    hostile_rows(site, {"views": '{"server": 1, "outsider": [2]}'})


def adoption_of_nothing(site: Site) -> None:
    hostile_rows(site, {"purpose": "adopt", "details": "[[1]]"})


def schema_of(site: Site, *texts: str, drop: bool = False) -> None:
    dropped = ["DROP TABLE entries", "DROP TABLE head"] if drop else []
    db = sqlite3.connect(site.path)
    db.executescript(";".join(["BEGIN", *dropped, *texts, "COMMIT"]))
    db.close()


def endless_table(site: Site) -> None:
    """Views in the place of the tables: one of them never ends."""
    endless = (
        "CREATE VIEW {} AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) "
        "SELECT id, 'x' AS hash FROM n"
    )
    schema_of(site, endless.format("entries"), endless.format("head"), drop=True)


def further_trigger(site: Site) -> None:
    schema_of(site, "CREATE TRIGGER more AFTER INSERT ON entries BEGIN DELETE FROM head; END")


def further_table(site: Site) -> None:
    schema_of(site, "CREATE TABLE more (x)")


def many_tables(site: Site) -> None:
    schema_of(site, *(f"CREATE TABLE more_{number} (x)" for number in range(300)))


def weaker_trigger(site: Site) -> None:
    schema_of(
        site,
        "DROP TRIGGER entries_keep_rows",
        "CREATE TRIGGER entries_keep_rows BEFORE DELETE ON entries BEGIN SELECT 1; END",
    )


def link(site: Site) -> None:
    site.path.rename(site.folder / "real.sqlite")
    site.path.symlink_to(site.folder / "real.sqlite")


def link_to_nowhere(site: Site) -> None:
    site.path.unlink()
    site.path.symlink_to(site.folder / "nowhere.sqlite")


def pipe(site: Site) -> None:
    site.path.unlink()
    os.mkfifo(site.path)


def folder(site: Site) -> None:
    site.path.unlink()
    site.path.mkdir()


def huge(site: Site) -> None:
    with site.path.open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file


def journal_without_a_ledger(site: Site) -> None:
    for file in (site.path, site.head, site.kept):
        file.unlink()
    site.path.with_name(f"{site.path.name}-journal").write_bytes(b"\xd9\xd5\x05\xf9 \xa1c\xd7" * 64)


HOSTILE: dict[Callable[[Site], None], str] = {
    deep_view: "brackets in each other|cannot be read",
    deep_json: "brackets in each other",
    deep_details: "brackets in each other",
    quotes_without_end: "cannot be trusted",
    endless_views: "at most .* characters of views",
    giant_value: "too big",
    long_name: "at most .* characters of run",
    view_of_numbers: "cannot be read",
    adoption_of_nothing: "cannot be read",
    endless_table: "which no ledger defines so",
    further_trigger: "'more', which no ledger defines so",
    further_table: "'more', which no ledger defines so",
    many_tables: "defines more than one does",
    weaker_trigger: "'entries_keep_rows', which no ledger defines so",
    link: "symbolic link: .*: name .*real.sqlite instead",
    link_to_nowhere: "symbolic link",
    pipe: "no plain file",
    folder: "no plain file",
    huge: "at most 4 GiB",
    journal_without_a_ledger: "taken away from beside it",
}
"""A file from elsewhere in the ledger's place, and what is said."""
