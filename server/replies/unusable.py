"""Record unusable replies outside training rounds, for log, metrics and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from server.replies.sorting import Item


class Unusable(Protocol):
    """Silos that failed, and silos whose replies were refused, with why."""

    failed: list[Item]
    refused: list[Item]


def record_unusable(
    emit: Callable[[Mapping[str, Any]], None], server_round: int, what: str, found: Unusable
) -> None:
    """Emit a record of kind ``replies`` if any reply was unusable.

    Args:
        what: was asked, in messages: "the delivery of the codec".
    """
    if found.failed or found.refused:
        record = {"kind": "replies", "round": server_round, "what": what}
        emit(record | {"failed": found.failed, "refused": found.refused})
