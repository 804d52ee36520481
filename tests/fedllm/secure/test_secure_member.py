"""A silo's durable record: nothing twice, nothing backwards, no other roster; across restarts, processes and failures."""

from __future__ import annotations

import json
import multiprocessing
import stat

import numpy as np
import pytest
from secure_sums import Silos, plain_sum, refused

from fedllm.secure import record
from fedllm.secure.errors import SumRefused
from fedllm.secure.member import Member
from fedllm.secure.roster import Roster
from fedllm.secure.sums import Sums


def file_of(silos, name="silo-000"):
    return silos.members[name]._record.path


def masked(silos, number, name="silo-000", context="round"):
    sums = Sums(silos.roster, number, context, silos.advances(number))
    member = silos.members[name]
    return member.mask(number, sums.packets_for(name), silos.vectors()[name], context)


@pytest.mark.parametrize("t", [0, 1])
def test_no_session_is_masked_twice_or_backwards(tmp_path, t):
    silos = Silos(tmp_path, 4, t)
    masked(silos, 5)
    before = file_of(silos).read_bytes()
    packets = {} if not t else {"silo-001": bytes(114)}
    for member in (silos.members["silo-000"], silos.again("silo-000")):
        for number in (5, 4, 1):
            text = refused(member.mask, number, packets, silos.vectors()["silo-000"], "round")
            assert "above 5" in text
            if t:
                assert "above 5" in refused(member.advance, number)
    for number in (0, -1, True, 2**53, "6", None):
        assert "session" in refused(
            silos.members["silo-000"].mask, number, {}, silos.vectors()["silo-000"], "round"
        )
    assert file_of(silos).read_bytes() == before
    assert silos.again("silo-000").introduce().session == 5


def test_a_silo_restarts_between_mask_and_open(tmp_path):
    silos = Silos(tmp_path, 5, 2)
    vectors = silos.vectors()
    advances = silos.advances(1)
    silos.members = {name: silos.again(name) for name in silos.names}
    assert silos.advances(1) == advances  # asked again: the same bytes
    sums = Sums(silos.roster, 1, "round", advances)
    for name in silos.names[:4]:
        sums.add(name, silos.again(name).mask(1, sums.packets_for(name), vectors[name], "round"))
    openings = [silos.again(name).open(1, sums.answered()) for name in silos.names[:3]]
    assert (sums.total(openings) == plain_sum(vectors, silos.names[:4])).all()


def test_no_session_is_opened_twice_and_shares_are_forgotten(tmp_path):
    silos = Silos(tmp_path, 4, 1)
    masked(silos, 1)
    for number in (2, 3):
        assert "masked last" in refused(silos.members["silo-000"].open, number, silos.names)
    assert json.loads(file_of(silos).read_text())["shares"]
    silos.members["silo-000"].open(1, silos.names)
    assert json.loads(file_of(silos).read_text())["shares"] == {}
    for names in (silos.names, silos.names[:3], silos.names[1:]):
        for member in (silos.members["silo-000"], silos.again("silo-000")):
            assert "did not open" in refused(member.open, 1, names)
    masked(silos, 2)
    masked(silos, 3)
    assert "masked last" in refused(silos.members["silo-000"].open, 2, silos.names)
    silos.members["silo-000"].open(3, silos.names)


def test_a_refused_opening_changes_nothing(tmp_path):
    silos = Silos(tmp_path, 5, 2)
    sums = Sums(silos.roster, 1, "round", silos.advances(1, silos.names[:4]))
    member = silos.members["silo-000"]
    member.mask(1, sums.packets_for("silo-000"), silos.vectors()["silo-000"], "round")
    before = file_of(silos).read_bytes()
    for wrong, named in (
        (silos.names[:2], "at least 3"),
        ([], "at least 3"),
        (silos.names, "advanced"),
        ([*silos.names[:3], "nobody"], "advanced"),
        ([silos.names[0]] * 3, "once"),
        ([1, 2, 3], "name"),
        ("silo-000", "list"),
        (None, "list"),
    ):
        assert named in refused(member.open, 1, wrong)
    assert file_of(silos).read_bytes() == before
    opening = member.open(1, silos.names[1:4])
    assert set(opening.seeds) == set(silos.names[1:4])
    assert set(opening.keys) == {"silo-000"}


def test_a_refused_mask_changes_nothing(tmp_path):
    silos = Silos(tmp_path, 5, 1)
    member, vector = silos.members["silo-000"], silos.vectors()["silo-000"]
    sums = Sums(silos.roster, 1, "round", silos.advances(1))
    right = sums.packets_for("silo-000")
    before = file_of(silos).read_bytes()
    few = {name: right[name] for name in silos.names[1:3]}
    cases = [
        (few, vector, "at least 3 peers"),
        (right | {"silo-000": right["silo-001"]}, vector, "got those of"),
        (right | {"nobody": right["silo-001"]}, vector, "roster"),
        (right | {"silo-001": right["silo-002"]}, vector, "packet of silo 'silo-001'"),
        (right | {"silo-001": "x"}, vector, "bytes"),
        (right | {"silo-001": b""}, vector, "packet"),
        (None, vector, "packets"),
        (right, vector[:3], "entries"),
        (right, vector.reshape(1, -1), "entries"),
        (right, vector.astype(np.int64), "uint64"),
        (right, vector.astype(np.uint32), "uint64"),
        (right, vector.tolist(), "uint64"),
    ]
    for packets, given, named in cases:
        assert named in refused(member.mask, 1, packets, given, "round")
    assert file_of(silos).read_bytes() == before
    member.mask(1, right, vector, "round")
    alone = Silos(tmp_path / "alone", 3)
    assert "no packets" in refused(alone.members["silo-000"].mask, 1, right, vector, "round")
    assert "drop_outs=0" in refused(alone.members["silo-000"].open, 1, alone.names)
    assert "drop_outs=0" in refused(alone.members["silo-000"].advance, 1)


def test_before_a_roster_nothing_is_done(tmp_path):
    member = Member("a", "run", tmp_path / "sums")
    for call in (
        lambda: member.advance(1), lambda: member.open(1, ["a", "b"]),
        lambda: member.mask(1, {}, np.zeros(3, "uint64"), "round"),
    ):  # fmt: skip
        assert "joined a roster" in refused(call)
    assert member.roster is None


def changed(silos, **plan):
    old = silos.roster
    wanted = {
        "drop_outs": old.drop_outs, "colluding": old.colluding, "bits": old.bits,
        "noise_multiplier": old.noise_multiplier, "dimension": old.dimension,
    }  # fmt: skip
    members = plan.pop("members", old.members)
    return Roster.make(members, **(wanted | plan))


def test_the_roster_is_fixed_for_the_run(tmp_path):
    silos = Silos(tmp_path, 4, 1)
    others = [
        changed(silos, members=silos.roster.members[:3]), changed(silos, drop_outs=0),
        changed(silos, noise_multiplier=1.0), changed(silos, dimension=6), changed(silos, bits=32),
    ]  # fmt: skip
    for member in (silos.members["silo-000"], silos.again("silo-000")):
        member.join(silos.roster)
        assert member.roster == silos.roster
        for other in others:
            assert "joined" in refused(member.join, other)
    assert silos.again("silo-000").roster == silos.roster


def test_a_roster_without_the_silo_or_with_another_key_or_run_is_refused(tmp_path):
    silos = Silos(tmp_path, 3)
    late = Member("silo-000", "run-1", tmp_path / "new disk")  # its record was lost: another key
    assert "record lost" in refused(late.join, silos.roster)
    assert "of the roster" in refused(Member("x", "run-1", tmp_path / "x").join, silos.roster)
    assert "of the run" in refused(Member("silo-000", "run-2", tmp_path / "y").join, silos.roster)
    again = changed(silos, members=[late.introduce(), *silos.roster.members[1:]])
    assert "joined" in refused(silos.members["silo-001"].join, again)


def test_the_record_is_private_and_of_one_silo_and_run(tmp_path):
    silos = Silos(tmp_path, 3, 1)
    path = file_of(silos)
    masked(silos, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    one = Member("silo-000", "run-2", path.parent)
    assert one.introduce().key != silos.members["silo-000"].introduce().key
    assert one._record.path != path
    good = path.read_text()
    other = json.loads(good) | {"run": "run-2"}
    for damaged in ("", "{}", good[:-5], json.dumps(other), "[" * 9000, json.dumps(json.loads(good) | {"masked": "1"})):  # fmt: skip
        path.write_text(damaged)
        assert str(path) in refused(silos.members["silo-000"].introduce)
        assert path.read_text() == damaged  # not replaced by a fresh one


def test_names_from_a_server_do_not_choose_a_file(tmp_path):
    paths = {Member(name, run, tmp_path)._record.path for name, run in (("../a", "b"), ("..", "/a/b"), ("a", "bc"), ("ab", "c"))}  # fmt: skip
    assert {path.parent for path in paths} == {tmp_path}
    assert len(paths) == 4


@pytest.mark.parametrize("stage", ["mask", "open"])
def test_nothing_is_returned_before_the_record_is_written(tmp_path, stage, monkeypatch):
    silos = Silos(tmp_path, 4, 1)
    member, vector = silos.members["silo-000"], silos.vectors()["silo-000"]
    packets = Sums(silos.roster, 1, "round", silos.advances(1)).packets_for("silo-000")

    def mask():
        return member.mask(1, packets, vector, "round")

    if stage == "open":
        mask()
    before = file_of(silos).read_bytes()

    def full(path, data):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(record, "write_private", full)
        text = refused(mask) if stage == "mask" else refused(member.open, 1, silos.names)
        assert "No space" in text
    assert file_of(silos).read_bytes() == before
    if stage == "mask":
        mask()
    else:
        member.open(1, silos.names)


def _race(silos, packets, number, start, results):
    member = silos.again("silo-000")
    vector = silos.vectors(number)["silo-000"]
    start.wait()
    try:
        results.put(member.mask(1, packets, vector, "round").tolist())
    except SumRefused:
        results.put(None)


@pytest.mark.parametrize("t", [0, 1])
def test_of_processes_that_race_one_masks(tmp_path, t):
    silos = Silos(tmp_path, 4, t)
    packets = Sums(silos.roster, 1, "round", silos.advances(1)).packets_for("silo-000")
    context = multiprocessing.get_context("fork")
    for _ in range(1):
        start, results = context.Event(), context.Queue()
        racers = [
            context.Process(target=_race, args=(silos, packets, i, start, results))
            for i in range(5)
        ]
        for racer in racers:
            racer.start()
        start.set()
        found = [results.get(timeout=60) for _ in racers]
        for racer in racers:
            racer.join(timeout=60)
        assert sum(answer is not None for answer in found) == 1
