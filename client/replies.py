"""Reply cache of a silo: a task that comes again is answered with the same bytes.

A task comes again where the SuperLink was away as it handed it out (:mod:`server.nodes.exchange`), and where a run that
is resumed repeats a round. Kept in this process alone: a new one computes again, which is a release of its
own.

Guarantee: an answer given again is what left the silo before, for the same task: post-processing, which costs
nothing and gets no row in the ledger.
"""

from __future__ import annotations

from flwr.app import Message, RecordDict

from fedllm import messages as names

_last: dict[str, tuple[str, RecordDict]] = {}


def task_key(message: Message) -> str:
    """Return a task's identity: its kind, and the hash of its settings, round and tensors.

    The head of the silo's ledger that comes along is no part of that: it is another after each reply.
    """
    asked = {name: part for name, part in message.content.items() if name != names.LEDGER}
    return f"{message.metadata.message_type} {RecordDict(asked).object_id}"


def answer_of(silo: str, task: str) -> RecordDict | None:
    """Return the silo's last answer, if it was to this task."""
    known, content = _last.get(silo, ("", None))
    return content if known == task else None


def keep(silo: str, task: str, content: RecordDict) -> None:
    """Remember an answer instead of the silo's last one."""
    _last[silo] = (task, content)
