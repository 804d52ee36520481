"""The replies of the silos sorted: good ones, failures, refusals, and who leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict

from fedllm import messages as names
from server.replies.envelope import check_speaker, read_envelope, why_none
from server.replies.refusal import ReplyRefused, one_line

log = logging.getLogger("fedllm")
Item = dict[str, str]
"""``silo`` and ``reason``."""
T = TypeVar("T")


class RunStopped(Exception):
    """The run cannot go on; the message says why. Its state is saved."""


@dataclass
class Replies(Generic[T]):
    """Replies of all silos to one task.

    Attributes:
        accepted: what was read of each good reply.
        failed, refused, left: the others. A silo fails where it gives no answer or says so, its answer
            is refused where it is not usable, and it leaves where its budget is spent.
        without_codec: names of those that failed since they do not have the codec.
    """

    accepted: list[T] = field(default_factory=list)
    failed: list[Item] = field(default_factory=list)
    refused: list[Item] = field(default_factory=list)
    left: list[Item] = field(default_factory=list)
    without_codec: list[str] = field(default_factory=list)

    def require(self, asked: float, most: float, what: str) -> None:
        """Refuse to go on with too many failures.

        Raises:
            RunStopped: a larger share than ``most`` failed or was refused.
        """
        bad = self.failed + self.refused
        if asked and most < 1 and len(bad) / asked > most:  # asked may be an expected number
            reasons = "; ".join(f"{item['silo']}: {item['reason']}" for item in bad)
            raise RunStopped(
                f"{len(bad)} of {asked:g} silos failed in {what}, more than "
                f"server.max_failures={most} tolerates: {reasons}"
            )


def sort_replies(
    asked: Sequence[str],
    replies: Sequence[Message | None],
    read: Callable[[str, RecordDict], T],
    timeout: float,
) -> Replies[T]:
    """Sort the replies of the silos that were asked, in the same order.

    No reply ends a run: whatever reading one raises refuses that one.

    Args:
        read: makes of a silo's name and its reply's content what is wanted; called where the silo says that
            its task is done, in its own name.
    """
    found: Replies[T] = Replies()
    for name, reply in zip(asked, replies, strict=True):
        if reply is None or reply.has_error():
            found.failed.append({"silo": name, "reason": str(why_none(reply, timeout))})
            continue
        try:
            envelope = read_envelope(reply.content)
            check_speaker(envelope, name)
            if envelope.status == names.OK:
                found.accepted.append(read(name, reply.content))
                continue
        except ReplyRefused as error:
            found.refused.append({"silo": name, "reason": one_line(str(error))})
            continue
        except Exception as error:  # a stranger's message found a hole in its reader
            log.debug("the reply of %s", name, exc_info=error)
            reason = f"malformed reply: {type(error).__name__}: {error}"
            found.refused.append({"silo": name, "reason": one_line(reason)})
            continue
        item = {"silo": name, "reason": envelope.reason}
        if envelope.status == names.LEFT:
            found.left.append(item)
            continue
        if envelope.status == names.NEEDS_DELIVERY:
            found.without_codec.append(name)
        found.failed.append(item)
    return found
