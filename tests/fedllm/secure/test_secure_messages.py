"""Texts of introductions, rosters, advances and openings: read back as they were, refused when wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_sums import Silos

from fedllm.secure.errors import SumRefused
from fedllm.secure.messages import (
    Advance,
    Opening,
    names_from_text,
    names_to_text,
    packets_from_text,
    packets_to_text,
)
from fedllm.secure.roster import Introduction, Roster
from fedllm.secure.sums import Sums

READERS = (
    Introduction.from_text, Roster.from_text, Advance.from_text, Opening.from_text,
    packets_from_text, names_from_text,
)  # fmt: skip


@pytest.fixture
def silos(tmp_path):
    return Silos(tmp_path, 4, 1)


@pytest.fixture
def texts(silos):
    advances = silos.advances(1)
    sums = Sums(silos.roster, 1, "round", advances)
    for name, vector in silos.vectors().items():
        sums.add(name, silos.members[name].mask(1, sums.packets_for(name), vector, "round"))
    opening = silos.members["silo-001"].open(1, silos.names)
    packets = sums.packets_for("silo-002")
    return {
        Introduction.from_text: (silos.members["silo-000"].introduce(), Introduction.to_text),
        Roster.from_text: (silos.roster, Roster.to_text),
        Advance.from_text: (advances[0], Advance.to_text),
        Opening.from_text: (opening, Opening.to_text),
        packets_from_text: (packets, packets_to_text),
        names_from_text: (tuple(silos.names), names_to_text),
    }


def test_texts_read_back(texts):
    for read, (value, write) in texts.items():
        assert read(write(value)) == value
    assert Roster.from_text(texts[Roster.from_text][0].to_text()).digest == (
        texts[Roster.from_text][0].digest
    )


WRONG = [
    None, True, [], "", "x" * 99, -1, 2**70, 1.5, "zz" * 32, "00" * 31, "AA" * 32, {"a": 1}, ["a", "a"],
    {"\ud800": "00"}, [["a"]], {"silo-001": None}, "a\nb",
]  # fmt: skip


def outcome(read, text):
    """What a text reads as, or the message of the refusal."""
    try:
        return read(text)
    except SumRefused as error:
        return str(error)


def test_every_field_refuses_what_is_none(texts):
    """Each field of each text is replaced by each wrong value: it is refused, or means what it says."""
    for read, (value, write) in texts.items():
        plain = json.loads(write(value))
        for field in plain:
            wrong = [other for other in WRONG if other != plain[field]]
            found = [outcome(read, json.dumps(plain | {field: other})) for other in wrong]
            refusals = [message for message in found if isinstance(message, str)]
            assert value not in found
            assert len(refusals) >= len(wrong) - 5, (read, field)
            assert all(m.startswith("Expected") and len(m) < 600 for m in refusals)
            with pytest.raises(SumRefused, match="Expected"):
                read(json.dumps({key: plain[key] for key in plain if key != field}))
        with pytest.raises(SumRefused, match="fields"):
            read(json.dumps(plain | {"more": 1}))


@settings(max_examples=20, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda x: st.lists(x) | st.dictionaries(st.text(max_size=5), x),
    ),
    st.text(),
)
def test_arbitrary_texts_are_one_clear_error(value, text):
    for read in READERS:
        for given_text in (
            json.dumps(value),
            text,
            "[" * 1000,
            "1" * 5000,
            "\ud800",
            b"{}",
            None,
            3,
        ):
            with pytest.raises(SumRefused, match="Expected"):
                read(given_text)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"drop_outs": 2}, "secure.drop_outs"),
        ({"drop_outs": -1}, "secure.drop_outs"),
        ({"drop_outs": 1, "colluding": 2}, "secure.colluding"),
        ({"colluding": 4}, "secure.drop_outs"),
        ({"bits": 16}, "secure.bits"),
        ({"bits": True}, "secure.bits"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": float("inf")}, "finite"),
        ({"dimension": 0}, "dimension"),
        ({"run": ""}, "run"),
        ({"run": "another"}, "run"),
    ],
)
def test_a_roster_out_of_range_is_refused(silos, change, named):
    plain = json.loads(silos.roster.to_text()) | change
    with pytest.raises(SumRefused, match=named):
        Roster.from_text(json.dumps(plain))


def test_a_roster_of_repeated_or_unsorted_silos_is_refused(silos):
    plain = json.loads(silos.roster.to_text())
    members = plain["members"]
    twice = members[0] | {"name": "silo-9"}
    for wrong in ([*members, members[0]], members[::-1], members[:1], [*members, twice], []):
        with pytest.raises(SumRefused, match="Expected"):
            Roster.from_text(json.dumps(plain | {"members": wrong}))


def test_the_digest_is_of_all_that_silos_agree_on(silos):
    plain = json.loads(silos.roster.to_text())
    changes = [
        {"drop_outs": 0},
        {"colluding": 1},
        {"bits": 32},
        {"noise_multiplier": 1.5},
        {"dimension": 6},
    ]
    first = plain["members"][0]
    for key in ({"name": "silo-0"}, {"key": "ab" * 32}):
        changes.append({"members": [first | key, *plain["members"][1:]]})
    digests = {Roster.from_text(json.dumps(plain | change)).digest for change in changes}
    assert len(digests | {silos.roster.digest}) == len(changes) + 1
    signed = [first | {"signature": "aa", "session": 7}, *plain["members"][1:]]
    again = Roster.from_text(json.dumps(plain | {"members": signed}))
    assert again.digest == silos.roster.digest


def test_an_opening_with_both_shares_of_a_silo_is_refused(texts):
    opening, write = texts[Opening.from_text]
    plain = json.loads(write(opening))
    plain["keys"] = {"silo-002": plain["seeds"]["silo-002"]}
    with pytest.raises(SumRefused, match="both"):
        Opening.from_text(json.dumps(plain))
