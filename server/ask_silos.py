"""The silos asked for something other than training: a few released numbers of each, checked, and who leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor

from fedllm import messages as names
from server.aggregation import UpdateRefused
from server.exchange import exchange
from server.replies import RunStopped, sort_replies
from server.strategy import PrefixStrategy


def ask_silos(
    grid: Grid,
    strategy: PrefixStrategy,
    chosen: Sequence[str],
    tasks: Sequence[Message],
    *,
    record: str,
    size: int,
    what: str,
    stop: threading.Event,
    check: Callable[[Tensor], None] = lambda released: None,
) -> dict[str, tuple[Tensor, float]]:
    """What each silo released, float64 [size], and its sampling rate, by name.

    Args:
        chosen, tasks: the silos, and the task of each.
        record: of the reply, and its one tensor.
        size: how many numbers a silo releases.
        what: they are, in messages: "statistics for the codec".
        stop: set by another thread to interrupt.
        check: raises UpdateRefused for numbers that are not usable.

    Raises:
        RunStopped: too many silos failed, or none answered.
        Stopped: ``stop`` was set.
    """

    def read(name: str, reply: Message) -> tuple[str, Tensor, float]:
        content: Any = reply.content
        released = content[record].to_torch_state_dict()[record]
        if released.shape != (size,) or released.dtype != torch.float64:
            raise UpdateRefused(
                f"Expected {size} {record}, got {tuple(released.shape)}, {released.dtype}"
            )
        if not bool(torch.isfinite(released).all()):
            raise UpdateRefused(f"Expected finite {record}, got NaN or infinity")
        check(released)
        rate = float(content[names.METRICS][names.SAMPLING_RATE])
        if not 0 < rate <= 1:
            raise UpdateRefused(f"Expected 0 < {names.SAMPLING_RATE} <= 1, got {rate}")
        return name, released, rate

    server = strategy.settings.server
    replies = exchange(grid, tasks, timeout=server.timeout, stop=stop)
    found = sort_replies(chosen, replies, read, server.timeout)
    strategy.left |= {item["silo"]: item["reason"] for item in found.left}
    found.require(len(chosen), server.max_failures, f"the {what}")
    if not found.accepted:
        raise nobody(strategy, what)
    return {name: (released, rate) for name, released, rate in found.accepted}


def nobody(strategy: PrefixStrategy, what: str) -> RunStopped:
    """No silo released anything; with why those left that did."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in strategy.left.items())
    return RunStopped(f"No silo released {what}; left: {reasons}")
