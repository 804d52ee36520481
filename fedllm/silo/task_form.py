"""The form of a task: which fields and tensors it brings, and how the value of each field is read.

A server may send any values. Each field has a reader, which returns the value with its type or refuses it by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedllm.files.bounded_json import TooLarge, read_bounded, shortened
from fedllm.task_errors import TaskRefused

Read = Callable[[str, Any], Any]
"""``read(name, value)`` returns the typed value of a field, or raises TaskRefused."""
ArrayForm = tuple[tuple[int, ...], str]
"""Shape, and number format as numpy writes it (``<f4``)."""
MOST_ROUNDS = 1_000_000
MOST_LAYERS = 4096
DIGEST, SEED = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class TaskForm:
    """Extras of one part of a run in a task; all of them must be there.

    Attributes:
        fields: a reader for each plain value.
        tensors: records of tensors with the names and shapes of the trained ones.
    """

    fields: Mapping[str, Read] = field(default_factory=dict)
    tensors: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """The names under which a task has them among its extras."""
        return frozenset(self.fields) | self.tensors

    def __or__(self, other: TaskForm) -> TaskForm:
        return TaskForm({**self.fields, **other.fields}, self.tensors | other.tensors)


def text(pattern: re.Pattern[str], expected: str) -> Read:
    """Return a reader of texts that the whole pattern matches.

    >>> text(DIGEST, "64 hexadecimal digits")("version", "0" * 64) == "0" * 64
    True
    """

    def read(name: str, value: Any) -> str:
        if type(value) is not str or pattern.fullmatch(value) is None:
            raise TaskRefused(f"Expected {expected} in {name}, got {shortened(value)}")
        return value

    return read


def whole(least: int) -> Read:
    """Return a reader of whole numbers from ``least`` to :data:`MOST_ROUNDS`."""

    def read(name: str, value: Any) -> int:
        if type(value) is not int or not least <= value <= MOST_ROUNDS:
            raise TaskRefused(
                f"Expected a whole number from {least} to {MOST_ROUNDS} in {name}, got {shortened(value)}"
            )
        return value

    return read


def json_text(name: str, value: Any) -> str:
    """Read a text that is parsed later."""
    if type(value) is not str:
        raise TaskRefused(f"Expected JSON text in {name}, got {shortened(value)}")
    return value


def json_object(what: str) -> Read:
    """Return a reader of bounded JSON objects."""

    def read(name: str, value: Any) -> Mapping[str, Any]:
        try:
            found = read_bounded(json_text(name, value), what)
        except TooLarge as error:
            raise TaskRefused(str(error)) from None
        if not isinstance(found, dict):
            raise TaskRefused(f"Expected {what} in {name}, got {shortened(found)}")
        return found

    return read


def positive(name: str, value: Any) -> float:
    """Read a finite number above zero."""
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        raise TaskRefused(f"Expected a finite number > 0 in {name}, got {shortened(value)}")
    return float(value)


def share(name: str, value: Any) -> float:
    """Read a number between 0 and 1."""
    if type(value) is not float or not 0 < value < 1:
        raise TaskRefused(f"Expected a number between 0 and 1 in {name}, got {shortened(value)}")
    return value


def layers(name: str, value: Any) -> tuple[int, ...]:
    """Read the numbers of layers."""
    good = isinstance(value, list) and len(value) <= MOST_LAYERS
    if not good or any(type(layer) is not int or not 0 <= layer <= 2**31 for layer in value):
        raise TaskRefused(
            f"Expected at most {MOST_LAYERS} layer numbers >= 0 in {name}, got {shortened(value)}"
        )
    return tuple(value)
