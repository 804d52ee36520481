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

    def numbers(self, ranges: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Return numbers by name, each in its range [low, high], which are finite.

        Raises:
            ReplyRefused: one is missing, no number (a truth value is none), or out of range.
        """
        found = {}
        for name, (low, high) in ranges.items():
            value: Any = self.values.get(name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low <= value <= high:  # NaN is in no range
                raise self._refusal(f"a number from {low:g} to {high:g}", name)
            found[name] = float(value)
        return found

    def whole(self, name: str, low: int, high: int) -> int:
        """Return a whole number in [low, high], sent as such.

        Raises:
            ReplyRefused: it is missing, of another type, or out of range.
        """
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            wanted = f"whole number {low}" if low == high else f"whole number, {low} to {high}"
            raise self._refusal(f"{'the' if low == high else 'a'} {wanted}", name)
        return value

    def texts(self, lengths: Mapping[str, int]) -> list[str]:
        """Return texts by name, each of at most so many characters.

        Raises:
            ReplyRefused: one is missing, no text, or longer.
        """
        found = []
        for name, most in lengths.items():
            value = self.values.get(name)
            if not isinstance(value, str) or len(value) > most:
                raise self._refusal(f"a text of at most {most} characters", name)
            found.append(value)
        return found

    def same(self, expected: Mapping[str, str | int]) -> None:
        """Refuse other values than the expected ones.

        Raises:
            ReplyRefused: one is missing, of another type or another value.
        """
        for name, wanted in expected.items():
            value = self.values.get(name)
            if type(value) is not type(wanted) or value != wanted:
                raise self._refusal(shown(wanted), name)

    def only(self, known: Iterable[str]) -> None:
        """Refuse fields that no one asked for.

        Raises:
            ReplyRefused: there are others; the message names some.
        """
        names = set(known)
        if others := [name for name in self.values if name not in names]:
            raise ReplyRefused(f"Expected no field {shown(others[0])} in {self.record}, got one")

    def _refusal(self, wanted: str, name: str) -> ReplyRefused:
        got = shown(self.values[name]) if name in self.values else "none"
        return ReplyRefused(f"Expected {wanted} as {self.record}.{name}, got {got}")


def texts_of(content: RecordDict, record: str) -> Fields:
    """Return a record of texts and numbers (``info``).

    Raises:
        ReplyRefused: there is none of this name and kind.
    """
    found = content.get(record)
    if not isinstance(found, ConfigRecord):
        raise ReplyRefused(f"Expected the record {record} with texts, got {_kind(found)}")
    return Fields(record, found)


def numbers_of(content: RecordDict, record: str) -> Fields:
    """Return a record of numbers (``metrics``).

    Raises:
        ReplyRefused: there is none of this name and kind.
    """
    found = content.get(record)
    if not isinstance(found, MetricRecord):
        raise ReplyRefused(f"Expected the record {record} with numbers, got {_kind(found)}")
    return Fields(record, found)


def only_records(content: RecordDict, known: Iterable[str]) -> None:
    """Refuse records that no one asked for.

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
