"""What silos say around a secure sum, read into typed values or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedllm import messages as names
from fedllm.secure.member import Member
from fedllm.secure.roster import Roster
from server.replies import ReplyRefused
from server.replies.sums import read_advance, read_introduction, read_opening

ENVELOPE = {names.SILO: "a", names.STATUS: names.OK, names.REASON: ""}


def reply(field: str, text: Any, numbers: dict[str, Any] | None = None) -> RecordDict:
    content = RecordDict({names.INFO: ConfigRecord({**ENVELOPE, field: text})})
    if numbers is not None:
        content[names.METRICS] = MetricRecord(numbers)
    return content


@pytest.fixture
def silos(tmp_path: Path) -> dict[str, Member]:
    """Three silos that joined one roster."""
    made = {name: Member(name, "run", tmp_path) for name in "abc"}
    roster = Roster.make(
        [each.introduce() for each in made.values()],
        drop_outs=1,
        colluding=0,
        bits=64,
        noise_multiplier=1.0,
        dimension=2,
    )
    for each in made.values():
        each.join(roster)
    return made


def test_an_introduction_is_read_or_refused(silos: dict[str, Member]) -> None:
    text = silos["a"].introduce().to_text()
    numbers: dict[str, Any] = {names.NOISE_MULTIPLIER: 0.9, names.PINNED: 1.0}

    def read(text: Any = text, **other: Any) -> Any:
        content = reply(names.INTRODUCTION, text, numbers | other)
        return read_introduction("a", content, "run", 1.0)

    found = read()
    assert (found.said, found.noise_multiplier, found.pinned) == (
        silos["a"].introduce(),
        0.9,
        True,
    )
    refused: list[Callable[[], Any]] = [
        lambda: read(""),
        lambda: read("{}"),
        lambda: read(7),
        lambda: read(silos["b"].introduce().to_text()),
        lambda: read(**{names.NOISE_MULTIPLIER: 0.0}),
        lambda: read(**{names.NOISE_MULTIPLIER: float("nan")}),
        lambda: read(**{names.PINNED: 2.0}),
        lambda: read(more=1.0),
        lambda: read_introduction("a", reply(names.INTRODUCTION, text, numbers), "other", 1.0),
    ]
    for wrong in refused:
        with pytest.raises(ReplyRefused):
            wrong()


@pytest.mark.parametrize("what", [names.ADVANCE, names.OPENING])
def test_advances_and_openings_are_those_of_the_silo_and_the_session(
    silos: dict[str, Member], what: str
) -> None:
    read = read_advance if what == names.ADVANCE else read_opening
    if what == names.ADVANCE:
        said = {name: each.advance(3).to_text() for name, each in silos.items()}
    else:
        advances = {name: each.advance(3) for name, each in silos.items()}
        for name in "ab":
            packets = {peer: a.packets[name] for peer, a in advances.items() if peer != name}
            silos[name].mask(3, packets, np.zeros(2, dtype=np.uint64), "")
        said = {name: silos[name].open(3, ["a", "b"]).to_text() for name in "ab"}
    assert read("a", reply(what, said["a"]), 3).name == "a"
    for text, session in ((said["b"], 3), (said["a"], 4), ("", 3), ("[1]", 3), (said["a"][:-1], 3)):
        with pytest.raises(ReplyRefused):
            read("a", reply(what, text), session)
    more = reply(what, said["a"])
    more["more"] = ArrayRecord()
    with pytest.raises(ReplyRefused):
        read("a", more, 3)
