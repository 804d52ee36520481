"""Map the classes written in the data to class indices."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from fedllm.data.formats.records import DataError, TextDataset

_WHOLE = re.compile(r"([+-]?\d{1,30})\.0*")
_TRUTH = ("true", "false")


def class_text(value: Any) -> str | None:
    """Return a class, stored as text, whole number or truth value, as text; None for anything else.

    ``1.0``, which ``1`` becomes in a data frame with gaps, is ``"1"``; ``true`` is ``"true"``.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | str):
        return str(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else None


def class_place(value: Any, labels: Sequence[str]) -> int | None:
    """Place of a value among the classes; None if it is none of them.

    What is written exactly as a class is that class. Otherwise blanks around it, ``.0`` behind a whole number and
    capitals of ``true`` and ``false`` make no difference, unless two classes differ in nothing else. A
    function of the value and the named classes alone.
    """
    text = class_text(value)
    if text is None:
        return None
    exact, loose = _places(tuple(labels))
    place = exact.get(str(value))
    return exact.get(text, loose.get(_loose(text))) if place is None else place


@lru_cache(maxsize=16)
def _places(labels: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    exact = {label: place for place, label in enumerate(labels)}
    loose: dict[str, int] = {}
    shared = set()
    for place, label in enumerate(labels):
        if loose.setdefault(_loose(label), place) != place:
            shared.add(_loose(label))
    return exact, {text: place for text, place in loose.items() if text not in shared}


def _loose(text: str) -> str:
    text = text.strip()
    whole = _WHOLE.fullmatch(text)
    if whole:
        return str(int(whole.group(1)))
    return text.lower() if text.lower() in _TRUTH else text


def label_index(
    records: Iterable[Mapping[str, Any]] | TextDataset,
    column: str,
    labels: Sequence[str | int] | None,
) -> tuple[list[int], list[str]]:
    """Return the class index of every record, and the classes as strings in index order.

    Values are compared with ``labels`` as :func:`class_place` does: ``1``, ``"1"`` and ``1.0`` are the same
    class. The index of a value is its place in ``labels``, whatever the data holds. With ``labels=None`` the
    classes are those that occur, numerically sorted where all are integers and as text otherwise:
    that set depends on the data, so with private data the labels must be named.

    Raises DataError for an unknown label, a missing column or value, a repeated name in ``labels``,
    and for ``labels=None`` on no records.
    """
    name = records.name if isinstance(records, TextDataset) else "the records"
    values: list[Any] = []
    written: list[str] = []
    for row, record in enumerate(records):
        if column not in record:
            raise DataError(
                f"Expected label column '{column}' in {name}, got columns {', '.join(record)} in "
                f"record {row} (counted from 0)"
            )
        text = class_text(record[column])
        if text is None:
            raise DataError(
                f"Expected a string or an integer as label in column '{column}' of {name}, got "
                f"{record[column]!r} in record {row} (counted from 0)"
            )
        values.append(record[column])
        written.append(text)
    if labels is None:
        known = _sorted_labels(set(written))
        if not known:
            raise DataError(f"Expected records to take the labels from, got none in {name}")
    else:
        known = [str(label) for label in labels]
        if len(set(known)) != len(known) or not known:
            raise DataError(f"Expected one or more distinct labels, got labels={list(labels)}")
    indices: list[int] = []
    for row, value in enumerate(values):
        place = class_place(value, known)
        if place is None:
            raise DataError(
                f"Expected a label among {', '.join(known)} in column '{column}' of {name}, got "
                f"{reprlib.repr(written[row])} in record {row} (counted from 0)"
            )
        indices.append(place)
    return indices, known


def _sorted_labels(values: set[str]) -> list[str]:
    try:
        return sorted(values, key=lambda value: (int(value), value))
    except ValueError:
        return sorted(values)
