"""Sums are exact whoever drops out, up to t silos at any stages; beyond that, and with wrong shares, a clear stop."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_sums import STAGES, Silos, plain_sum, refused

from fedllm.secure.errors import SumLost, SumRefused
from fedllm.secure.sums import Sums


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(("n", "t"), [(2, 0), (3, 0), (6, 0), (3, 1), (6, 2), (9, 4)])
def test_a_sum_of_all_is_exact(tmp_path, n, t, bits):
    silos = Silos(tmp_path, n, t, bits=bits, dimension=7)
    vectors = silos.vectors()
    kept = {name: vector.copy() for name, vector in vectors.items()}
    for number in (1, 2, 9):
        total, answered = silos.run(number, vectors)
        assert answered == silos.names
        assert total.dtype == vectors["silo-000"].dtype
        assert (total == plain_sum(kept, silos.names)).all()
    assert all((vectors[name] == kept[name]).all() for name in kept)  # masking changes no input


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_every_sum_is_exact_while_at_most_t_silos_drop_out(data):
    n = data.draw(st.integers(3, 7), "n")
    t = data.draw(st.integers(1, (n - 1) // 2), "t")
    with tempfile.TemporaryDirectory() as folder:
        silos = Silos(Path(folder), n, t, bits=data.draw(st.sampled_from([32, 64])), dimension=3)
        for number in (1, 2):
            names = data.draw(st.permutations(silos.names))[: data.draw(st.integers(0, t))]
            gone = {name: data.draw(st.sampled_from(STAGES)) for name in names}
            vectors = silos.vectors(number)
            total, answered = silos.run(number, vectors, gone)
            assert answered == [n for n in silos.names if gone.get(n, "open") == "open"]
            assert (total == plain_sum(vectors, answered)).all()


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_beyond_the_threshold_the_sum_is_lost_or_exact(data):
    n = data.draw(st.integers(3, 6), "n")
    t = data.draw(st.integers(1, (n - 1) // 2), "t")
    with tempfile.TemporaryDirectory() as folder:
        silos = Silos(Path(folder), n, t, dimension=3)
        gone = {name: data.draw(st.sampled_from((None, *STAGES))) for name in silos.names}
        gone = {name: stage for name, stage in gone.items() if stage}
        k, stages = n - t, list(gone.values())
        advanced = n - stages.count("advance")
        answered = advanced - sum(stages.count(stage) for stage in ("mask", "lost", "late"))
        opened = answered - stages.count("open") + stages.count("late")
        vectors = silos.vectors()
        if min(advanced, answered, opened) < k:
            with pytest.raises(SumLost, match=rf"Expected at least {k} of {n} silos that"):
                silos.run(1, vectors, gone)
        else:
            total, names = silos.run(1, vectors, gone)
            assert (total == plain_sum(vectors, names)).all()


def test_without_drop_outs_a_missing_silo_loses_the_sum(tmp_path):
    silos = Silos(tmp_path, 3)
    with pytest.raises(
        SumLost, match=r"3 of 3 silos that answered .* got 2; missing: \['silo-001'\]"
    ):
        silos.run(1, silos.vectors(), {"silo-001": "lost"})
    total, _ = silos.run(2, silos.vectors())  # the next session works
    assert (total == plain_sum(silos.vectors(), silos.names)).all()


def test_a_lost_session_does_not_harm_the_next(tmp_path):
    silos = Silos(tmp_path, 5, 1)
    for number, stage in enumerate(STAGES, 1):
        with pytest.raises(SumLost):
            silos.run(number, silos.vectors(), {"silo-000": stage, "silo-004": stage})
    total, _ = silos.run(9, silos.vectors())
    assert (total == plain_sum(silos.vectors(), silos.names)).all()


def opened(silos, gone=()):
    """A session that waits for openings: (sums, openings, wanted sum)."""
    vectors = silos.vectors()
    sums = Sums(silos.roster, 1, "round", silos.advances(1))
    for name in silos.names:
        masked = silos.members[name].mask(1, sums.packets_for(name), vectors[name], "round")
        if name not in gone:
            sums.add(name, masked)
    openings = [silos.members[name].open(1, sums.answered()) for name in silos.names]
    return sums, openings, plain_sum(vectors, sums.answered())


def wrong_shares(opening, kind):
    shares = {name: bytes(len(share)) for name, share in getattr(opening, kind).items()}
    return replace(opening, **{kind: shares})


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_wrong_shares_are_left_out_where_enough_are_right(tmp_path, kind):
    sums, openings, wanted = opened(Silos(tmp_path, 7, 2), ["silo-003"])
    for liars in ({0}, {0, 6}):
        told = [wrong_shares(o, kind) if i in liars else o for i, o in enumerate(openings)]
        assert (sums.total(told) == wanted).all()
    told = [wrong_shares(o, kind) if i < 3 else o for i, o in enumerate(openings)]
    with pytest.raises(
        SumLost, match=r"Expected at least 5 right shares of silo 'silo-00\d'.* got 4"
    ):
        sums.total(told)
    assert (sums.total(openings) == wanted).all()  # and nothing was used up


@pytest.mark.parametrize("kind", ["seed", "key"])
def test_a_dealer_whose_shares_restore_another_secret_is_named(tmp_path, kind):
    sums, openings, _ = opened(Silos(tmp_path, 5, 1), ["silo-003"])
    dealer = "silo-003" if kind == "key" else "silo-001"
    advance = sums._advances[dealer]
    lie = {"key": sums._advances["silo-000"].key} if kind == "key" else {"seed_mark": bytes(32)}
    sums._advances[dealer] = replace(advance, **lie)
    with pytest.raises(SumLost, match=f"'{dealer}' in session 1 restore its secret, got another"):
        sums.total(openings)


def test_openings_of_another_list_or_session_or_twice_are_refused(tmp_path):
    silos = Silos(tmp_path, 5, 2)
    sums, openings, _ = opened(silos, ["silo-003"])
    moved = dict(openings[0].seeds)
    moved.pop("silo-004")
    for wrong in (
        replace(openings[0], seeds=moved),
        replace(openings[0], keys={}),
        replace(openings[0], session=2),
        replace(openings[0], name="nobody"),
        openings[1],
    ):
        with pytest.raises(SumRefused, match="Expected"):
            sums.total([wrong, *openings[1:]])
    with pytest.raises(SumLost, match="at least 3 of 5 silos that opened"):
        sums.total(openings[:2])


def test_wrong_masked_vectors_and_advances_are_refused(tmp_path):
    silos = Silos(tmp_path, 4, 1)
    advances = silos.advances(1)
    sums = Sums(silos.roster, 1, "round", advances[:3])
    right = silos.vectors()["silo-000"]
    assert "advanced" in refused(sums.add, "silo-003", right)
    assert "entries" in refused(sums.add, "silo-000", right[:4])
    assert "uint64" in refused(sums.add, "silo-000", right.astype(np.int64))
    sums.add("silo-000", right)
    assert "second" in refused(sums.add, "silo-000", right)
    assert sums.answered() == ["silo-000"]
    few = dict(advances[0].packets)
    few.pop("silo-001")
    for wrong in (
        [*advances, advances[0]],
        silos.advances(2),
        [replace(advances[0], packets=few), *advances[1:]],
        [replace(advances[0], marks={}), *advances[1:]],
        [replace(advances[0], name="nobody"), *advances[1:]],
    ):
        with pytest.raises(SumRefused, match="Expected"):
            Sums(silos.roster, 1, "round", wrong)
    with pytest.raises(SumLost, match="at least 3 of 4 silos that advanced"):
        Sums(silos.roster, 1, "round", advances[:2])
    alone = Silos(tmp_path / "alone", 4)
    with pytest.raises(SumRefused, match="drop_outs = 0"):
        Sums(alone.roster, 1, "round", advances)
