"""Read the values of a record by the form of its task, and check them before anything is spent.

Each function reads one value, and knows nothing of other records. A fault is a sentence for the silo's own log.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

from fedllm.data.formats.records import DataError, Record
from fedllm.data.labels import class_place, class_text
from fedllm.data.suspicious import printed_turns
from fedllm.settings.kinds import Form, RecordColumns

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
Message = dict[str, str]
"""``role`` and ``content`` of one turn."""


class RecordError(DataError):
    """One record cannot be used.

    Args:
        fault: what is wrong, as a sentence without the record.
        row: number of the record, from 0.
    """

    def __init__(self, fault: str, row: int) -> None:
        super().__init__(
            f"Expected records that can be used, got record {row} (counted from 0): {fault}"
        )
        self.fault, self.row = fault, row


def text_fault(value: Any) -> str | None:
    """Return the fault of a text, or None."""
    if value is None:
        return "no text (null)"
    if not isinstance(value, str):
        return f"{type(value).__name__} in place of text"
    if not value.strip():
        return "blank text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "half a character (a lone surrogate), or bytes that are no text in data.encoding"
    if printed_turns(value):
        return "a conversation as Python prints it, in place of text (a list of messages is read by task.kind=chat)"
    return None


def label_fault(value: Any, labels: Sequence[str]) -> str | None:
    """Return the fault of a class, or None."""
    if class_text(value) is None:
        return "no class (null)" if value is None else f"{type(value).__name__} in place of a class"
    if class_place(value, labels) is None:
        return f"the class {reprlib.repr(value)}, which is not among {', '.join(labels)}"
    return None


def texts_fault(value: Any) -> str | None:
    """Return the fault of a target text, or of a list of alternative texts; None if there is none."""
    if not isinstance(value, list | tuple):
        return text_fault(value)
    faults = [text_fault(each) for each in value] or ["no text"]
    return next(filter(None, faults), None)


def messages_of(value: Any) -> list[Message]:
    """Return the turns of a conversation, ``role`` and ``content`` of each alone.

    Raises:
        ValueError: it is no list of such turns; the message is the fault.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"{type(value).__name__} in place of a list of messages")
    turns: list[Message] = []
    for place, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise ValueError(
                f"message {place} is {type(turn).__name__} in place of role and content"
            )
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or not role:
            raise ValueError(f"message {place} has no role")
        blank = role == SYSTEM and isinstance(content, str) and not content.strip()
        fault = None if blank else text_fault(content)
        if fault is not None:
            raise ValueError(f"message {place} ({reprlib.repr(role)}): {fault}")
        turns.append({"role": role, "content": str(content)})
    return turns


def _conversation(value: Any) -> None:
    if all(turn["role"] != ASSISTANT for turn in messages_of(value)):
        raise ValueError(f"a conversation without a turn of the {ASSISTANT}")


def labels_of(value: Any, labels: Sequence[str], separator: str) -> list[int]:
    """Return the places of a record's labels, ascending: of a list, or of one text with a separator.

    Raises:
        ValueError: it is neither, or has an unknown label; the message is the fault.
    """
    if value is None:
        raise ValueError("no labels (null); write an empty list, or an empty text")
    if isinstance(value, str):
        value = [part for part in value.split(separator) if part.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError(f"{type(value).__name__} in place of a list of labels")
    for label in value:
        fault = label_fault(label, labels)
        if fault is not None:
            raise ValueError(fault.replace("class", "label"))
    return sorted({class_place(label, labels) or 0 for label in value})


def number_of(value: Any) -> float:
    """Return a number, written as one or as text.

    Raises:
        ValueError: it is no finite number; the message is the fault.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(
            "no number (null)" if value is None else f"{type(value).__name__} in place of a number"
        )
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{reprlib.repr(value)} in place of a number") from None
    if not math.isfinite(found):
        raise ValueError(f"{found} in place of a finite number")
    return found


def words_of(value: Any) -> list[str]:
    """Return the words of a list, or of a text at its blanks.

    Raises:
        ValueError: it is neither, has no word or a blank one; the message is the fault.
    """
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        raise ValueError(f"{type(value).__name__} in place of a list of words")
    if not words:
        raise ValueError("no word")
    for word in words:
        fault = text_fault(word)
        if fault is not None:
            raise ValueError(f"a word: {fault}")
    return list(words)


def tags_of(value: Any, labels: Sequence[str]) -> list[int]:
    """Return the places of the tags of a list, or of a text at its blanks; a whole number that is no tag is a place.

    Raises:
        ValueError: it is neither, or has an unknown tag; the message is the fault.
    """
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, list | tuple):
        raise ValueError(f"{type(value).__name__} in place of a list of tags")
    found = []
    for tag in tags:
        place = class_place(tag, labels)
        if place is None and isinstance(tag, int) and 0 <= tag < len(labels):
            place = int(tag)  # as data sets of the hub store them
        if place is None:
            raise ValueError(f"the tag {reprlib.repr(tag)}, which is not among {', '.join(labels)}")
        found.append(place)
    return found


def fault_of(read: Callable[..., Any], *given: Any) -> str | None:
    """Return the fault that a reader finds in a value, or None."""
    try:
        read(*given)
    except ValueError as error:
        return str(error)
    return None


def target_fault(value: Any, columns: RecordColumns) -> str | None:
    """Return the fault of a target by its form, or None."""
    labels = columns.labels
    checks: dict[Form, Callable[[], str | None]] = {
        "class": lambda: label_fault(value, labels),
        "text": lambda: texts_fault(value),
        "messages": lambda: fault_of(_conversation, value),
        "labels": lambda: fault_of(labels_of, value, labels, columns.separator),
        "number": lambda: fault_of(number_of, value),
        "tags": lambda: fault_of(tags_of, value, labels),
    }
    return checks[columns.form]()


def input_fault(value: Any, form: Form) -> str | None:
    """Return the fault of an input by the form of its record, or None."""
    if form == "messages":
        return fault_of(_conversation, value)
    return fault_of(words_of, value) if form == "tags" else text_fault(value)


def row_fault(record: Record, columns: RecordColumns) -> str | None:
    """Return the fault of a record with its column's name, or None."""
    for column in columns.names:
        if column not in record:
            return f"no column {column!r}"
    for column in columns.text:
        fault = input_fault(record[column], columns.form)
        if fault is not None:
            return f"column {column!r}: {fault}"
    fault = target_fault(record[columns.target], columns)
    if fault is not None:
        return f"column {columns.target!r}: {fault}"
    if columns.form == "tags":
        words = words_of(record[columns.text[0]])
        tags = tags_of(record[columns.target], columns.labels)
        if len(words) != len(tags):
            return f"{len(words)} words with {len(tags)} tags"
    return None


def in_own_words(record: Record, columns: RecordColumns) -> Record:
    """Return the record with its target as a plain list of the names that ``columns`` has, where it is made of them.

    How the data write them must decide nothing about how an experiment reads them.
    """
    value, labels = record[columns.target], columns.labels
    own: Any = value
    if columns.form == "class":
        own = labels[class_place(value, labels) or 0]
    elif columns.form == "labels":
        own = [labels[place] for place in labels_of(value, labels, columns.separator)]
    elif columns.form == "tags":
        own = [labels[place] for place in tags_of(value, labels)]
    return record | {columns.target: own}
