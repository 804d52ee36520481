"""Fields at the start of every reply to a task: silo, success, reason for a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flwr.app import Message, RecordDict

from fedllm import messages as names
from server.replies.fields import texts_of
from server.replies.refusal import ReplyRefused, one_line, shown

LONGEST_NAME = 256
"""Characters of a silo's name."""
Status = Literal["ok", "left", "failed", "needs-delivery", "idle"]
STATUSES: tuple[Status, ...] = ("ok", "left", "failed", "needs-delivery", "idle")
ENVELOPE = (names.SILO, names.STATUS, names.REASON)
"""The envelope's fields in the record ``info``, beside which a kind of reply may have its own."""


@dataclass(frozen=True)
class Envelope:
    """The sender of a reply and the outcome of its task.

    Attributes:
        silo: the name that the node gives itself; empty where it failed before it knew.
        status: of :mod:`fedllm.messages`.
        reason: in one printable line; empty where the task was done.
    """

    silo: str
    status: Status
    reason: str


def read_envelope(content: RecordDict) -> Envelope:
    """The envelope of a reply's content.

    Raises:
        ReplyRefused: a field is missing, of another type or too long, or there is no such status.
    """
    info = texts_of(content, names.INFO)
    # Of a reason that is too long the beginning is kept: the silo's word on why it failed is worth that much.
    silo, told, reason = info.texts(
        {names.SILO: LONGEST_NAME, names.STATUS: LONGEST_NAME, names.REASON: 10**6}
    )
    if not silo.isprintable():
        raise ReplyRefused(f"Expected a printable name as info.{names.SILO}, got {shown(silo)}")
    status = next((known for known in STATUSES if known == told), None)
    if status is None:
        raise ReplyRefused(
            f"Expected info.{names.STATUS} to be one of {', '.join(STATUSES)}, got {shown(told)}"
        )
    return Envelope(silo, status, one_line(reason) if reason else "")


def check_speaker(envelope: Envelope, silo: str) -> None:
    """Refuse a reply that is given in another silo's name.

    Raises:
        ReplyRefused: it is.
    """
    nameless = not envelope.silo and envelope.status != names.OK
    if envelope.silo != silo and not nameless:
        raise ReplyRefused(f"Expected a reply of silo {silo}, got {shown(envelope.silo)}")


def why_none(reply: Message | None, seconds: float) -> str | None:
    """Return the reason why there is no content to read, or None if there is some."""
    if reply is None:
        return f"no reply within {seconds:g} s"
    if reply.has_error():
        return one_line(str(reply.error.reason), 500)
    return None
