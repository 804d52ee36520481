"""The reply to a task of evaluation: two counts of a silo's held-out examples."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import RecordDict

from fedllm import messages as names
from fedllm.silo.evaluation import CountRelease
from server.replies.envelope import ENVELOPE
from server.replies.fields import numbers_of, only_records, texts_of
from server.replies.refusal import ReplyRefused

MOST_EXAMPLES = 10**9
"""Maximum number of examples of one silo."""


@dataclass(frozen=True)
class EvaluationReply:
    """Correct answers and examples of a silo; noisy, unless the settings say ``raw``."""

    correct: float
    count: float


def least_count(counts: CountRelease) -> float:
    """Return the least that an honest silo's count is: 0 without noise; else 40 standard deviations below (a chance
    of less than 1e-300)."""
    return -40 * counts.sigma if counts.private else 0.0


def read_evaluation(content: RecordDict, least: float) -> EvaluationReply:
    """Return the typed value of a reply whose envelope says ``ok``.

    Args:
        least: that a count may be: 0 without noise, and beyond that what its noise may reach.

    Raises:
        ReplyRefused: a count is missing, no number or out of range, more answers are correct than there are
            (without noise), or there is anything else in the reply.
    """
    only_records(content, [names.INFO, names.METRICS])
    texts_of(content, names.INFO).only(ENVELOPE)
    metrics = numbers_of(content, names.METRICS)
    metrics.only([names.CORRECT, names.COUNT])
    numbers = metrics.numbers(dict.fromkeys((names.CORRECT, names.COUNT), (least, MOST_EXAMPLES)))
    correct, count = numbers[names.CORRECT], numbers[names.COUNT]
    if least == 0 and correct > count:
        raise ReplyRefused(
            f"Expected metrics.{names.CORRECT} of at most metrics.{names.COUNT}={count:g}, "
            f"got {correct:g}"
        )
    return EvaluationReply(correct, count)
