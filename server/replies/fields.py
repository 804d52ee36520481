"""The numbers and texts of one record of a reply, each read by name, type and range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from server.replies.refusal import ReplyRefused, shown


@dataclass(frozen=True)
class Fields:
    """One record of a reply.

    Attributes:
        record: its name, for messages.
        values: what the node sent: anything, under any names.
    """

    record: str
    values: Mapping[str, Any]

    def number(self, name: str, low: float, high: float) -> float:
        """A number in [low, high], which are finite.

        Raises:
            ReplyRefused: it is missing, no number (a truth value is none), or out of range.
        """
        value = self._value(name, f"a number from {low:g} to {high:g}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:  # NaN is in no range
            raise self._refusal(f"a number from {low:g} to {high:g}", name, value)
        return float(value)

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number in [low, high], sent as such.

        Raises:
            ReplyRefused: it is missing, of another type, or out of range.
        """
        wanted = f"the whole number {low}" if low == high else f"a whole number, {low} to {high}"
        value = self._value(name, wanted)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._refusal(wanted, name, value)
        return value

    def text(self, name: str, most: int) -> str:
        """A text of at most ``most`` characters.

        Raises:
            ReplyRefused: it is missing, no text, or longer.
        """
        wanted = f"a text of at most {most} characters"
        value = self._value(name, wanted)
        if not isinstance(value, str) or len(value) > most:
            raise self._refusal(wanted, name, value)
        return value

    def same(self, name: str, expected: str | int) -> None:
        """Refuse another value than the expected one.

        Raises:
            ReplyRefused: it is missing, of another type or another value.
        """
        value = self._value(name, shown(expected))
        if type(value) is not type(expected) or value != expected:
            raise self._refusal(shown(expected), name, value)

    def only(self, known: Iterable[str]) -> None:
        """Refuse fields that nobody asked for.

        Raises:
            ReplyRefused: there are others; the message names some.
        """
        names = set(known)
        if others := [name for name in self.values if name not in names]:
            raise ReplyRefused(f"Expected no field {shown(others[0])} in {self.record}, got one")

    def _value(self, name: str, wanted: str) -> Any:
        if name not in self.values:
            raise ReplyRefused(f"Expected {wanted} as {self.record}.{name}, got none")
        return self.values[name]

    def _refusal(self, wanted: str, name: str, value: Any) -> ReplyRefused:
        return ReplyRefused(f"Expected {wanted} as {self.record}.{name}, got {shown(value)}")


def texts_of(content: RecordDict, record: str) -> Fields:
    """A record of texts and numbers (``info``).

    Raises:
        ReplyRefused: there is none of this name and kind.
    """
    found = content.get(record)
    if not isinstance(found, ConfigRecord):
        raise ReplyRefused(f"Expected the record {record} with texts, got {_kind(found)}")
    return Fields(record, found)


def numbers_of(content: RecordDict, record: str) -> Fields:
    """A record of numbers (``metrics``).

    Raises:
        ReplyRefused: there is none of this name and kind.
    """
    found = content.get(record)
    if not isinstance(found, MetricRecord):
        raise ReplyRefused(f"Expected the record {record} with numbers, got {_kind(found)}")
    return Fields(record, found)


def only_records(content: RecordDict, known: Iterable[str]) -> None:
    """Refuse records that nobody asked for.

    Raises:
        ReplyRefused: there are others; the message names one.
    """
    names = set(known)
    if others := [name for name in content if name not in names]:
        raise ReplyRefused(
            f"Expected the records {', '.join(sorted(names))}, got {shown(others[0])} as well"
        )


def _kind(found: object) -> str:
    return "none" if found is None else f"a {type(found).__name__}"
