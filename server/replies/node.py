"""The reply to the first question of a run: which silo a node serves, and how many examples it has."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import RecordDict

from fedllm import messages as names
from server.replies.envelope import ENVELOPE, LONGEST_NAME, Envelope, read_envelope
from server.replies.evaluation import MOST_EXAMPLES
from server.replies.fields import numbers_of, only_records, texts_of
from server.replies.refusal import ReplyRefused

DESCRIPTION = ("version", "device", "tasks", "units")
"""Additional fields of a node's description; nothing depends on them."""


@dataclass(frozen=True)
class NodeReply:
    """A node's description of itself.

    Attributes:
        envelope: with the name of its silo.
        examples: their number, where it is public; else None.
    """

    envelope: Envelope
    examples: int | None


def read_node(content: RecordDict) -> NodeReply:
    """Return the typed value of a node's description, or of its refusal to take part.

    Raises:
        ReplyRefused: it is done and names no silo, a number of examples is senseless, or there is anything
            else in the reply.
    """
    only_records(content, [names.INFO, names.METRICS])
    envelope = read_envelope(content)
    info = texts_of(content, names.INFO)
    info.only([*ENVELOPE, *DESCRIPTION])
    info.texts({name: LONGEST_NAME for name in DESCRIPTION if name in info.values})
    if envelope.status == names.OK and not envelope.silo:
        raise ReplyRefused(f"Expected the name of a silo as info.{names.SILO}, got ''")
    numbers = numbers_of(content, names.METRICS)
    numbers.only([names.EXAMPLES])
    examples = None
    if names.EXAMPLES in numbers.values:
        examples = numbers.whole(names.EXAMPLES, 0, MOST_EXAMPLES)
    return NodeReply(envelope, examples)
