"""A ledger that was rolled back, copied, edited, cut or made by somebody else: refused, and nothing is lost.

The table of cases is :mod:`ledger_attacks`. Each is tried on a closed ledger and on one that is open.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ledger_attacks as attacks
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ledger_attacks import ADOPTABLE, BROKEN, HOSTILE, Site, entry, make_site

from privacy.ledger import heads as ledger_heads
from privacy.ledger.heads import HeadFile, head_beside
from privacy.ledger.ledger import (
    Adoption,
    Head,
    Ledger,
    LedgerError,
    LedgerRolledBack,
    adopt_ledger,
)

Attack = Callable[[Site], None]
BECAUSE = "restored from the backup of Monday; Dr. Ito decided it"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("template"))


@pytest.fixture
def site(template: Site, tmp_path: Path) -> Site:
    return Site(Path(shutil.copytree(template.folder, tmp_path / "site")))


def name(attack: object) -> str:
    return getattr(attack, "__name__", "")


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def test_a_new_ledger_has_its_heads_and_opens_again(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    assert site.kept.is_file()
    with site.open() as ledger:
        assert ledger.verify().ok


@pytest.mark.parametrize("attack", [*ADOPTABLE, *BROKEN], ids=name)
def test_a_closed_ledger_is_refused_and_left_as_it_is(site: Site, attack: Attack) -> None:
    attack(site)
    before = content(site.path)
    for _ in range(2):  # asking again changes nothing
        with pytest.raises(LedgerError, match=(ADOPTABLE | BROKEN)[attack]) as refused:
            site.open()
        assert str(site.path) in str(refused.value)
    assert content(site.path) == before
    if attack is not attacks.truncated:
        assert "fedllm ledger adopt" in str(refused.value)
        assert f"--kept {site.kept}" in str(refused.value)


@pytest.mark.parametrize(
    "attack", [a for a in (*ADOPTABLE, *BROKEN) if a is not attacks.kept_head_lost], ids=name
)
def test_an_open_ledger_records_nothing_on_it(site: Site, attack: Attack) -> None:
    with site.open() as ledger:
        attack(site)
        before = content(site.path)
        asked = []
        with pytest.raises(LedgerError, match=r"ledger\.sqlite"):
            ledger.append(entry(6), lambda: asked.append(1))
        assert asked == []  # no budget was asked of what cannot be trusted
        assert content(site.path) == before


def test_reading_tells_of_the_heads(site: Site) -> None:
    with Ledger(site.path, read_only=True, kept=(site.kept,)) as ledger:
        report = ledger.verify()
        assert (report.ok, report.notes, report.adoptions) == (True, [], [])
    attacks.old_bytes_and_head(site)
    with Ledger(site.path, read_only=True) as ledger:  # who knows of no other head cannot tell
        assert ledger.verify().ok
    with Ledger(site.path, read_only=True, kept=(site.kept,)) as ledger:
        report = ledger.verify()
    assert not report.ok
    assert "records a row 6 that it lacks" in report.problems[0]


def test_a_rolled_back_ledger_of_an_earlier_version_does_not_verify(site: Site) -> None:
    """Whoever puts an old file back can also mark it as of the version that kept no heads."""
    attacks.old_bytes_and_head(site)
    attacks.statements(site, "PRAGMA user_version = 1")
    with Ledger(site.path, read_only=True, kept=(site.kept,)) as ledger:
        report = ledger.verify()
    assert not report.ok
    assert "records a row 6 that it lacks" in report.problems[0]
    site.kept.unlink()
    site.head.unlink()
    with Ledger(site.path, read_only=True, kept=(site.kept,)) as ledger:
        report = ledger.verify()
    assert (report.ok, report.notes) == (True, [])  # its version kept none


@pytest.mark.parametrize("attack", [attacks.edited_to_bytes, attacks.edited_to_infinity], ids=name)
def test_a_row_of_values_that_json_lacks_is_edited(site: Site, attack: Attack) -> None:
    attack(site)
    with Ledger(site.path, read_only=True) as ledger:
        report = ledger.verify()
    assert not report.ok
    assert report.rows == 6, "the rows after it are checked as well"
    assert any("row 2 was edited" in problem for problem in report.problems)


def test_a_silo_named_as_an_adoption_is_a_silo(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    with site.open() as ledger:
        ledger.append(replace(entry(9), party="adopt"))
        assert ledger.parties() == ["a", "adopt"]
        assert ledger.adoptions() == []
        assert [row.round for row in ledger.entries("adopt")] == [9]
    attacks.restored(site)
    adopt_ledger(site.path, Adoption(BECAUSE), (site.kept,))
    with site.open() as ledger:
        assert ledger.parties() == ["a"]
        assert len(ledger.adoptions()) == 1


def test_a_copy_of_the_file_alone_has_every_row(site: Site, tmp_path: Path) -> None:
    """Also while the ledger is open: nothing lies beside it."""
    with site.open() as ledger:
        ledger.append(entry(6))
        alone = tmp_path / "copy.sqlite"
        shutil.copy(site.path, alone)
        with Ledger(alone, read_only=True) as copied:
            report = copied.verify()
            assert report.ok
            assert report.rows == 7
            assert "is missing: it is a copy" in report.notes[0]
        with pytest.raises(LedgerRolledBack, match="is missing: it is a copy"):
            Ledger(alone)


# -- adoption ------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ADOPTABLE, ids=name)
def test_going_on_is_a_decision_that_is_recorded(site: Site, attack: Attack) -> None:
    attack(site)
    before = site.read() if site.path.exists() else []
    head = adopt_ledger(site.path, Adoption(BECAUSE), (site.kept,))
    assert head.rows == len(before) + 1
    with site.open() as ledger:
        assert ledger.entries() == before  # no release
        assert sum(ledger.spent("server").values()) == 4 * len(before)
        assert ledger.parties() == (["a"] if before else [])
        report = ledger.verify()
        assert report.ok
        assert BECAUSE in report.adoptions[0]
        assert ledger.append(entry(50))
    with pytest.raises(ValueError, match="needs to be adopted"):
        adopt_ledger(site.path, Adoption("again"), (site.kept,))


@pytest.mark.parametrize("attack", [a for a in BROKEN if a is not attacks.truncated], ids=name)
def test_a_broken_chain_is_not_adopted(site: Site, attack: Attack) -> None:
    attack(site)
    before = content(site.path)
    with pytest.raises(LedgerError, match=r"cannot be trusted: .* moved away"):
        adopt_ledger(site.path, Adoption(BECAUSE), (site.kept,))
    assert content(site.path) == before


def test_an_adoption_cannot_be_rolled_back_either(site: Site) -> None:
    attacks.restored(site)
    adopt_ledger(site.path, Adoption(BECAUSE), (site.kept,))
    attacks.restored(site)
    with pytest.raises(LedgerRolledBack, match="records a row 4 that it lacks"):
        site.open()


def test_a_head_that_the_server_knows_is_set_aside_by_name_alone(site: Site) -> None:
    with site.open() as ledger:
        server = ledger.head()
    attacks.old_bytes_and_head(site)
    adopt_ledger(site.path, Adoption("backup"), (site.kept,))  # the kept head is the server's, too
    with site.open() as ledger:
        ledger.require_contains(server, "the server")
        ahead = Head(7, "f" * 64)
        with pytest.raises(LedgerRolledBack, match=f"--head {ahead} --because"):
            ledger.require_contains(ahead, "the server")
    adopt_ledger(site.path, Adoption("two machines ran it", (ahead,)), (site.kept,))
    with site.open() as ledger:
        ledger.require_contains(ahead, "the server")
        assert not ledger.holds(Head(7, "e" * 64))
        assert len(ledger.verify().adoptions) == 2


def test_there_must_be_something_to_adopt(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got neither"):
        adopt_ledger(tmp_path / "ledger.sqlite", Adoption(BECAUSE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["", "  ", "a\nb", "x" * 501])
def test_a_reason_is_a_reason(words: str) -> None:
    with pytest.raises(ValueError, match="--because"):
        Adoption(words)


# -- crashes are no attacks ----------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize("where", ["_put", "advance", "replace"])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_around_a_head_refuses_nothing(
    tmp_path: Path, where: str, which: int, after: bool
) -> None:
    """Killed before or after each write of each head: what is there then can be opened."""
    site = Site(tmp_path)
    child = os.fork()
    if child == 0:
        calls, real = [0], getattr(HeadFile, where)

        def killed(self: HeadFile, *arguments: object, **options: object) -> None:
            calls[0] += 1
            if calls[0] == which + 1 and not after:
                die()
            real(self, *arguments, **options)
            if calls[0] == which + 1:
                die()

        setattr(HeadFile, where, killed)
        try:
            with site.open() as ledger:
                ledger.append(entry(0))
                ledger.append(entry(1))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    with site.open() as ledger:
        rows = ledger.verify().rows
        ledger.append(entry(10))
        assert ledger.verify().rows == rows + 1
        for place in (site.head, site.kept):
            assert HeadFile(place).read() == ledger.head()


def test_a_head_never_goes_back(site: Site) -> None:
    file = HeadFile(site.head)
    last = file.read()
    assert last is not None
    file.advance(Head(3, "a" * 64))  # of a process that was slow
    assert file.read() == last
    file.advance(Head(9, "b" * 64))
    assert file.read() == (9, "b" * 64)


def test_a_head_that_cannot_be_written_stops_the_release(site: Site) -> None:
    with site.open() as ledger:

        def remove() -> None:
            site.kept.unlink()

        with pytest.raises(LedgerError, match="nothing may be released"):
            ledger.append(entry(6), remove)  # it vanishes between question and commit
    assert len(site.read()) == 7  # counted all the same


def test_rows_of_another_process_are_verified_before_they_count(site: Site) -> None:
    """Many honest rows by others, and one edit among them: found once the rows have grown."""
    with site.open() as ledger, Ledger(site.path) as other:
        for number in range(6, 10):
            other.append(entry(number))
        assert ledger.append(entry(10))
        assert ledger.head().rows == 11
        attacks.edited(site)
        with pytest.raises(LedgerError, match="row 2 was edited"):
            ledger.append(entry(11))


# -- flipped bits --------------------------------------------------------------------------------


class Pristine:
    """A site, and the bytes of its files as they were."""

    def __init__(self, folder: Path) -> None:
        self.site = make_site(folder)
        self.data, self.head = self.site.path.read_bytes(), self.site.kept.read_bytes()
        self.rows = self.read()

    def read(self) -> list[tuple[object, ...]]:
        return [(row, row.id, row.time, row.hash) for row in self.site.read()]

    def flipped(self, position: float, bit: int) -> int:
        """Put everything back, but for one bit of the file, which is left to the caller; its byte's place."""
        for file in self.site.path.parent.iterdir():
            file.unlink()
        self.site.path.write_bytes(self.data)
        for place in (self.site.head, self.site.kept):
            place.write_bytes(self.head)
        return int(position * len(self.data))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Pristine:
    return Pristine(tmp_path_factory.mktemp("flips"))


POSITIONS = st.floats(0, 1, exclude_max=True)


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


@given(position=POSITIONS, bit=st.integers(0, 7))
@example(position=0.1875, bit=7)  # half a character in the schema
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_is_refused_or_changes_no_meaning(
    pristine: Pristine, position: float, bit: int
) -> None:
    site = pristine.site
    flip(site.path, pristine.flipped(position, bit), bit)
    with contextlib.suppress(LedgerError), site.open() as ledger:
        assert ledger.verify().ok
        assert pristine.read() == pristine.rows


@given(position=POSITIONS, bit=st.integers(0, 7))
@settings(max_examples=25, deadline=None)
def test_a_bit_that_flips_under_an_open_ledger(
    pristine: Pristine, position: float, bit: int
) -> None:
    site = pristine.site
    place = pristine.flipped(position, bit)
    with site.open() as ledger:
        flip(site.path, place, bit)
        recorded = False
        with contextlib.suppress(LedgerError):
            recorded = ledger.append(entry(6))
    if recorded:  # the bit had no meaning
        with site.open() as ledger:
            assert ledger.entries() == [entry(number) for number in range(7)]


@given(place=st.integers(0, 511), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_bit_of_a_head(pristine: Pristine, place: int, bit: int) -> None:
    """A head that changed is damaged, or the same head: never another one."""
    pristine.flipped(0, 0)
    file = HeadFile(pristine.site.kept)
    right = file.read()
    flip(file.path, place, bit)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(LedgerError):
        patch.setattr(ledger_heads, "_TRIES", 1)
        assert file.read() == right


# -- files from elsewhere ------------------------------------------------------------------------


@pytest.mark.parametrize("attack", HOSTILE, ids=name)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_hostile_file_is_refused_in_bounded_time(
    site: Site, attack: Attack, read_only: bool
) -> None:
    attack(site)

    def read() -> None:
        with Ledger(site.path, read_only=True) as ledger:
            report = ledger.verify()  # reading tells what it found
            if not report.ok:
                raise LedgerError("; ".join(report.problems))
            ledger.entries()

    began = time.process_time()
    with pytest.raises(LedgerError, match=HOSTILE[attack] if not read_only else r"\w") as refused:
        read() if read_only else site.open()
    assert time.process_time() - began < 5
    assert len(str(refused.value)) < 3000
    assert not site.path.is_symlink() or not (site.folder / "nowhere.sqlite").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"run": "r" * 2001}, "run"),
        ({"key": "k" * 2001}, "key"),
        ({"details": {"note": "x" * (1 << 20)}}, "details"),
    ],
)
def test_what_cannot_be_read_again_is_not_written(
    site: Site, changes: dict[str, object], what: str
) -> None:
    def make() -> None:
        values = {n: getattr(entry(9), n) for n in ("run", "party", "unit", "purpose", "round")}
        values |= {"key": "k", "views": entry(9).views} | changes
        with site.open() as ledger:
            ledger.append(type(entry(9))(**values))

    with pytest.raises(LedgerError, match=f"at most .* characters of {what}"):
        make()
    assert len(site.read()) == 6


def test_the_head_lies_beside_the_ledger(tmp_path: Path) -> None:
    assert head_beside(tmp_path / "x.sqlite") == tmp_path / "x.sqlite.head"
    assert HeadFile(tmp_path / "none").read() is None
