"""The replies of the silos sorted: good ones, failures, refusals, and who leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from flwr.app import Message

from fedllm import messages as names
from server.aggregation import UpdateRefused

Item = dict[str, str]
"""``silo`` and ``reason``."""
T = TypeVar("T")


class RunStopped(Exception):
    """The run cannot go on; the message says why. Its state is saved."""


@dataclass
class Replies(Generic[T]):
    """What came back to one task for each silo.

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
    read: Callable[[str, Message], T],
    timeout: float,
) -> Replies[T]:
    """Sort the replies of the silos that were asked, in the same order.

    Args:
        read: makes of a silo's reply what is wanted; UpdateRefused, KeyError, TypeError and ValueError
            refuse it.
    """
    found: Replies[T] = Replies()
    for name, reply in zip(asked, replies, strict=True):
        if reply is None:
            found.failed.append({"silo": name, "reason": f"no reply within {timeout:g} s"})
            continue
        if reply.has_error():
            found.failed.append({"silo": name, "reason": str(reply.error.reason)[:500]})
            continue
        try:
            info: Any = reply.content[names.INFO]
            status, reason = info[names.STATUS], str(info[names.REASON])
            if status == names.LEFT:
                found.left.append({"silo": name, "reason": reason})
                continue
            if status != names.OK:
                if status == names.NEEDS_CODEC:
                    found.without_codec.append(name)
                found.failed.append({"silo": name, "reason": reason})
                continue
            if info[names.SILO] != name:
                raise UpdateRefused(f"Expected a reply of silo {name}, got {info[names.SILO]}")
            found.accepted.append(read(name, reply))
        except UpdateRefused as error:
            found.refused.append({"silo": name, "reason": str(error)})
        except (KeyError, TypeError, ValueError) as error:
            found.refused.append({"silo": name, "reason": f"malformed reply: {error!r}"})
    return found
