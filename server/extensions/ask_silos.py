"""The silos asked for something other than training: a few released numbers of each, checked, and who leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from server.extensions.base import ServerRun
from server.nodes.exchange import exchange
from server.replies import RunStopped, sort_replies
from server.replies.released import read_released
from server.replies.unusable import record_unusable


def ask_silos(
    grid: Grid,
    run: ServerRun,
    chosen: Sequence[str],
    tasks: Sequence[Message],
    *,
    record: str,
    size: int,
    noise: float,
    what: str,
    check: Callable[[Tensor], None] = lambda released: None,
) -> dict[str, tuple[Tensor, float]]:
    """Request one release from every silo; return each value, float64 [size], and sampling rate by name.

    Args:
        chosen, tasks: the silos, and the task of each.
        record: of the reply, and its one tensor.
        size: how many numbers a silo releases.
        noise: bound of the standard deviation of the noise in each.
        what: they are, in messages: "statistics for the codec".
        check: raises ReplyRefused for numbers that are not usable.

    Raises:
        RunStopped: too many silos failed, or none answered.
        Stopped: the run was asked to stop.
    """

    # An honest one exceeds it with a chance of less than exp(-800), by the Gaussian's concentration.
    largest = run.settings.server.max_update_norm + noise * (math.sqrt(size) + 40)

    def read(name: str, content: RecordDict) -> tuple[str, Tensor, float]:
        reply = read_released(content, record, size, largest)
        check(reply.released)
        return name, reply.released, reply.sampling_rate

    server = run.settings.server
    replies = exchange(grid, tasks, timeout=server.timeout, stop=run.stop)
    found = sort_replies(chosen, replies, read, server.timeout)
    record_unusable(run.emit, run.finished_rounds, f"the {what}", found)
    run.left |= {item["silo"]: item["reason"] for item in found.left}
    found.require(len(chosen), server.max_failures, f"the {what}")
    if not found.accepted:
        raise nobody(run, what)
    return {name: (released, rate) for name, released, rate in found.accepted}


def nobody(run: ServerRun, what: str) -> RunStopped:
    """Return the error for a request that no silo answered, with the reasons."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in run.left.items())
    return RunStopped(f"No silo released {what}; left: {reasons}")
