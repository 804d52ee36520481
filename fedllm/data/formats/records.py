"""Rows of text data and the one error that bad data raises.

A record is a plain ``dict`` (one example); a :class:`TextDataset` is a list of them with a name and
the columns that every record has. No tensors and no tokens here: see the tasks for those.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Record = dict[str, Any]

Place = tuple[str, int]
"""Origin of a record: file and unit (``notes.csv line``), and number from 1."""

BadRows = Literal["refuse", "drop"]
"""Handling of unusable rows: refuse the whole data set, or drop the row."""


class DataError(ValueError):
    """Bad data, or a setting that does not fit the data; the one message says where and what."""


class RowError(DataError):
    """One row of a file is not a record, while the rest can be read."""


@dataclass(frozen=True)
class TextDataset:
    """Examples in a fixed order.

    ``records`` has one dict an example, ``name`` says where they come from (for error messages and
    reports), ``columns`` are the keys that every record has, ``left_out`` tells of each time that records which
    cannot be used were left out. ``places`` says where each record was read; it is empty where that is not known.
    """

    records: list[Record]
    name: str
    columns: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def select(self, indices: Iterable[int], name: str | None = None) -> TextDataset:
        """Return the examples at ``indices``, in that order, as a data set that shares the records."""
        rows = list(indices)
        chosen = [self.records[row] for row in rows]
        places = tuple(self.places[row] for row in rows) if self.places else ()
        return replace(self, records=chosen, name=name or self.name, places=places)

    def place(self, row: int) -> str:
        """Return where a record was read, in words; its number from 0 where that is not known."""
        if not self.places:
            return f"record {row} (counted from 0)"
        source, number = self.places[row]
        return f"{source} {number}"

    def column(self, name: str) -> list[Any]:
        """Return the values of one column; raises DataError if there is no such column."""
        require_columns(self, (name,))
        return [record[name] for record in self.records]


def require_columns(dataset: TextDataset, columns: Sequence[str]) -> None:
    """Raise DataError unless ``dataset`` has all of ``columns``; names the known ones."""
    for column in columns:
        if column not in dataset.columns:
            raise DataError(
                f"Expected column '{column}' in {dataset.name}, got columns "
                f"{', '.join(dataset.columns) or '(none)'}"
            )


def require_text(dataset: TextDataset, columns: Sequence[str]) -> None:
    """Raise DataError unless each of ``columns`` holds a non-blank string in every record."""
    require_columns(dataset, columns)
    for row, record in enumerate(dataset.records):
        for column in columns:
            value = record[column]
            if not isinstance(value, str) or not value.strip():
                raise DataError(
                    f"Expected text in column '{column}' of {dataset.name}, got {value!r} in "
                    f"record {row} (counted from 0)"
                )


def normalise_text(text: str) -> str:
    """Return the text for comparing and hashing: NFKC, case folded, each run of white space one space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())
