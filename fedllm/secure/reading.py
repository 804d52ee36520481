"""Read the texts of secure sums within bounds; one error for whatever is wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fedllm.files.bounded_json import Bounds, TooLarge, read_bounded, shortened
from fedllm.secure.errors import SumRefused

MOST_SILOS = 1000
"""Silos of one roster at most."""
LONGEST_NAME = 200
"""Characters of a silo's name at most."""
LAST_SESSION = 2**53 - 1
"""The highest session: JSON readers of every language keep it exactly."""
_HEX = re.compile(r"[0-9a-f]*")
_NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]+")


def write(value: Any) -> str:
    """Return the JSON of a value with sorted keys and no spaces: equal values, equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_object(
    text: object, what: str, fields: Iterable[str], *, length: int, longest_text: int = 4096
) -> dict[str, Any]:
    """Return the object of a text of JSON with exactly these fields.

    Raises:
        SumRefused: it is no text, too long, no such JSON, or has other fields.
    """
    if not isinstance(text, str):
        raise SumRefused(f"Expected {what} as a text, got {type(text).__name__}")
    bounds = Bounds(length=length, depth=5, members=MOST_SILOS, text=longest_text, key=LONGEST_NAME)
    try:
        value = read_bounded(text, what, bounds)
    except (TooLarge, UnicodeError, RecursionError) as error:
        raise SumRefused(str(error)) from None
    wanted = set(fields)
    if not isinstance(value, dict) or set(value) != wanted:
        got = sorted(value) if isinstance(value, dict) else value
        raise SumRefused(
            f"Expected {what} with the fields {', '.join(sorted(wanted))}, got {shortened(got)}"
        )
    return value


def read_name(value: object) -> str:
    """Return a silo's name; SumRefused unless it is a text of 1 to 200 printable characters."""
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not _NAME.fullmatch(value):
        raise SumRefused(
            f"Expected a silo's name of 1 to {LONGEST_NAME} characters, got {shortened(value)}"
        )
    return value


def read_names(value: object) -> tuple[str, ...]:
    """Return a list of different names of silos; SumRefused for anything else."""
    if not isinstance(value, list | tuple) or len(value) > MOST_SILOS:
        raise SumRefused(
            f"Expected a list of at most {MOST_SILOS} names of silos, got {shortened(value)}"
        )
    names = tuple(read_name(item) for item in value)
    if len(set(names)) != len(names):
        raise SumRefused(f"Expected each name of a silo once, got {shortened(sorted(names))}")
    return names


def read_whole(value: object, what: str, low: int, high: int) -> int:
    """Return a whole number from low to high; SumRefused for anything else, True among it."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise SumRefused(f"Expected {what} from {low} to {high}, got {shortened(value)}")
    return value


def read_session(value: object, low: int = 1) -> int:
    """Return a session's number; SumRefused unless it is whole, from `low` to LAST_SESSION."""
    return read_whole(value, "a session", low, LAST_SESSION)


def read_hex(value: object, what: str, size: int) -> bytes:
    """Return `size` bytes from their hexadecimal text; SumRefused for anything else."""
    if not isinstance(value, str) or len(value) != 2 * size or not _HEX.fullmatch(value):
        raise SumRefused(
            f"Expected {what} of {2 * size} hexadecimal digits, got {shortened(value)}"
        )
    return bytes.fromhex(value)


def read_by_name(value: object, what: str) -> Mapping[str, object]:
    """Return an object whose keys are names of silos; SumRefused for anything else."""
    if not isinstance(value, Mapping) or len(value) > MOST_SILOS:
        raise SumRefused(
            f"Expected {what} by the names of at most {MOST_SILOS} silos, got {shortened(value)}"
        )
    return {read_name(name): item for name, item in value.items()}
