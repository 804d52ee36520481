"""The reply to a question before or between rounds: a few released numbers, and the silo's sampling rate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from flwr.app import RecordDict
from torch import Tensor

from fedllm import messages as names
from server.replies.arrays import tensors_of
from server.replies.envelope import ENVELOPE
from server.replies.fields import numbers_of, only_records, texts_of
from server.replies.refusal import ReplyRefused
from server.replies.training import SMALLEST_RATE


@dataclass(frozen=True)
class ReleasedReply:
    """A silo's release, float64 [size], finite, and the rate at which it samples its examples."""

    released: Tensor
    sampling_rate: float


def read_released(content: RecordDict, record: str, size: int, largest: float) -> ReleasedReply:
    """Return the typed value of a reply whose envelope says ``ok``.

    Args:
        record: of the reply, and its one tensor.
        size: how many numbers a silo releases.
        largest: bound of their L2 norm.

    Raises:
        ReplyRefused: another number of them, another dtype, not finite, a larger norm, no rate in (0, 1], or
            there is anything else in the reply.
    """
    only_records(content, [names.INFO, names.METRICS, record])
    texts_of(content, names.INFO).only(ENVELOPE)
    metrics = numbers_of(content, names.METRICS)
    metrics.only([names.SAMPLING_RATE])
    rate = metrics.numbers({names.SAMPLING_RATE: (SMALLEST_RATE, 1.0)})[names.SAMPLING_RATE]
    released = tensors_of(content, record, {record: ((size,), torch.float64)})[record]
    norm = float(released.norm())
    if not norm <= largest:
        raise ReplyRefused(f"Expected {record} of norm at most {largest:g}, got {norm:g}")
    return ReleasedReply(released, rate)
