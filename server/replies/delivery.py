"""The reply to a codec that was sent: whether the silo has it."""

from __future__ import annotations

from flwr.app import RecordDict

from fedllm import messages as names
from server.replies.fields import only_records, texts_of
from server.replies.refusal import LONGEST_REASON, ReplyRefused, one_line


def read_delivery(content: RecordDict) -> str | None:
    """Return the silo's reason for not having the codec, or None if it has it.

    Raises:
        ReplyRefused: it says neither, or anything else.
    """
    only_records(content, [names.INFO])
    info = texts_of(content, names.INFO)
    info.only([names.STATUS, names.REASON])
    lengths = dict.fromkeys((names.STATUS, names.REASON), LONGEST_REASON)
    status, reason = map(one_line, info.texts(lengths))
    if status == names.OK:
        return None
    if status not in (names.FAILED, names.LEFT):
        raise ReplyRefused(f"Expected info.{names.STATUS} ok, left or failed, got {status[:80]!r}")
    return reason or "it gave no reason"
