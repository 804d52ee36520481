"""From the classes that the data writes to class indices."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedllm.data.records import DataError, TextDataset


def label_index(
    records: Iterable[Mapping[str, Any]] | TextDataset,
    column: str,
    labels: Sequence[str | int] | None,
) -> tuple[list[int], list[str]]:
    """Class index of every record, and the classes as strings in index order.

    Values and ``labels`` may be strings or integers; ``1`` and ``"1"`` are the same class. The
    index of a value is its place in ``labels``, whatever the data holds. With ``labels=None`` the
    classes are those that occur, numerically sorted where all are integers and as text otherwise:
    that set depends on the data, so with private data the labels must be named.

    Raises DataError for an unknown label, a missing column or value, a repeated name in ``labels``,
    and for ``labels=None`` on no records.
    """
    name = records.name if isinstance(records, TextDataset) else "the records"
    values: list[str] = []
    for row, record in enumerate(records):
        if column not in record:
            raise DataError(
                f"Expected label column '{column}' in {name}, got columns {', '.join(record)} in "
                f"record {row} (counted from 0)"
            )
        value = record[column]
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise DataError(
                f"Expected a string or an integer as label in column '{column}' of {name}, got "
                f"{value!r} in record {row} (counted from 0)"
            )
        values.append(str(value))
    if labels is None:
        known = _sorted_labels(set(values))
        if not known:
            raise DataError(f"Expected records to take the labels from, got none in {name}")
    else:
        known = [str(label) for label in labels]
        if len(set(known)) != len(known) or not known:
            raise DataError(f"Expected one or more distinct labels, got labels={list(labels)}")
    places = {label: place for place, label in enumerate(known)}
    indices: list[int] = []
    for row, text in enumerate(values):
        place = places.get(text)
        if place is None:
            raise DataError(
                f"Expected a label among {', '.join(known)} in column '{column}' of {name}, got "
                f"{reprlib.repr(text)} in record {row} (counted from 0)"
            )
        indices.append(place)
    return indices, known


def _sorted_labels(values: set[str]) -> list[str]:
    try:
        return sorted(values, key=lambda value: (int(value), value))
    except ValueError:
        return sorted(values)
