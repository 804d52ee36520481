"""Values that are text and look like none: a missing value or a conversation that a program wrote as text.

Each is judged by itself. A missing value's name may be an answer ("None", in a survey), so it is warned of; a list of turns as
Python prints it is no text that anybody wants a model to write, and is a fault of its record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from fedllm.data.formats.records import TextDataset

MISSING = frozenset({"None", "nan", "NaN", "NAN", "null", "NULL", "<NA>", "N/A", "#N/A", "NaT"})
"""Texts that programs write for a value that is missing."""
_TURNS = re.compile(r"""\s*\[?\s*\{\s*'(?:role|content|from|value)'\s*:\s*['"]""")
FIRST = 3
"""Places that a warning names at most."""


def printed_turns(text: str) -> bool:
    """Return True if a text is a conversation's turns as Python prints them (``[{'role': 'user', ...``)."""
    return _TURNS.match(text) is not None and text.rstrip()[-1] in "]}"


def warnings_of_missing(datasets: Iterable[TextDataset], columns: Sequence[str]) -> list[str]:
    """Return a sentence about each column with texts that look like a missing value.

    Args:
        datasets: of all silos.
        columns: of the input and the target.
    """
    counts: dict[str, int] = {}
    places: dict[str, list[str]] = {}
    words: dict[str, dict[str, None]] = {}
    for dataset in datasets:
        for row, record in enumerate(dataset):
            for column in columns:
                if any(
                    found := [text for text in _texts(record[column]) if text.strip() in MISSING]
                ):
                    counts[column] = counts.get(column, 0) + 1
                    places.setdefault(column, []).append(dataset.place(row))
                    words.setdefault(column, {}).update(dict.fromkeys(t.strip() for t in found))
    return [
        f"{count} training records hold the text {' or '.join(map(repr, words[column]))} in column {column!r}, which programs "
        f"write for a missing value; the first: {', '.join(places[column][:FIRST])}"
        for column, count in counts.items()
    ]


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if isinstance(each, str)]
