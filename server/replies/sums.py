"""The replies to the requests of a secure sum: introductions, advances and openings, each of the silo that was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flwr.app import RecordDict

from fedllm import messages as names
from fedllm.secure.errors import SumRefused
from fedllm.secure.messages import Advance, Opening
from fedllm.secure.roster import Introduction
from server.replies.envelope import ENVELOPE
from server.replies.fields import numbers_of, only_records, texts_of
from server.replies.refusal import ReplyRefused
from server.replies.training import LARGEST_NOISE, SMALLEST_NOISE

LONGEST = 1_000_000
"""Characters of an advance or an opening at most."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def session(self) -> int: ...


Said = TypeVar("Said", bound=_Named)


@dataclass(frozen=True)
class Introduced:
    """A silo's introduction.

    Attributes:
        said: name, key and last session.
        noise_multiplier: that the silo's own ledger and size ask for.
        pinned: whether it knows its peers' keys itself.
    """

    said: Introduction
    noise_multiplier: float
    pinned: bool


def read_introduction(name: str, content: RecordDict, run: str, smallest: float) -> Introduced:
    """Return the typed value of a reply whose envelope says ``ok``.

    Args:
        smallest: bound of the noise multiplier.

    Raises:
        ReplyRefused: it is none of this silo for this run.
    """
    only_records(content, [names.INFO, names.METRICS])
    said = _said(name, _text(content, names.INTRODUCTION), Introduction.from_text)
    if said.run != run:
        raise ReplyRefused(f"Expected a key for the run {run}, got one for another")
    metrics = numbers_of(content, names.METRICS)
    metrics.only([names.NOISE_MULTIPLIER, names.PINNED])
    ranges = {names.NOISE_MULTIPLIER: (min(SMALLEST_NOISE, smallest), LARGEST_NOISE)}
    found = metrics.numbers({**ranges, names.PINNED: (0.0, 1.0)})
    return Introduced(said, found[names.NOISE_MULTIPLIER], found[names.PINNED] == 1.0)


def read_advance(name: str, content: RecordDict, session: int) -> Advance:
    """Return the advance for a session that a reply has; ReplyRefused where it has none of this silo."""
    only_records(content, [names.INFO])
    return advance_of(name, _text(content, names.ADVANCE), session)


def advance_of(name: str, text: str, session: int) -> Advance:
    """Return the advance of a text; ReplyRefused where it is none of this silo for this session."""
    return _said(name, text, Advance.from_text, session)


def read_opening(name: str, content: RecordDict, session: int) -> Opening:
    """Return the opening of a session that a reply has; ReplyRefused where it has none of this silo."""
    only_records(content, [names.INFO])
    return _said(name, _text(content, names.OPENING), Opening.from_text, session)


def _text(content: RecordDict, field: str) -> str:
    info = texts_of(content, names.INFO)
    info.only([*ENVELOPE, field])
    return info.texts({field: LONGEST})[0]


def _said(name: str, text: str, read: Callable[[object], Said], session: int | None = None) -> Said:
    try:
        said = read(text)
    except SumRefused as error:
        raise ReplyRefused(str(error)) from None
    if said.name != name or session not in (None, said.session):
        raise ReplyRefused(
            f"Expected the word of silo {name} for session {session}, got that of {said.name} for {said.session}"
        )
    return said
