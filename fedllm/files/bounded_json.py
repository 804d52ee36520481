"""Read untrusted JSON within bounds on length, nesting, and the sizes of texts and lists.

What :mod:`json` itself does with hostile text: it recurses as deep as the text nests, and takes the last of two
equal keys. Here the text is measured before it is read, and what it says is measured before it is used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MARKS = re.compile(r'[\\"\[\]{}]')
SHOWN = 80
"""Characters of somebody else's text that a message quotes."""


class TooLarge(ValueError):
    """A text of JSON is beyond its bounds, or is no JSON; the message says what was expected."""


@dataclass(frozen=True)
class Bounds:
    """Size limits of a JSON text.

    Attributes:
        length: characters of the whole.
        depth: lists and objects within one another.
        members: entries of one list or object.
        text: characters of one text.
        key: characters of one key.
    """

    length: int = 1 << 20
    depth: int = 16
    members: int = 10_000
    text: int = 1 << 16
    key: int = 256


def read_bounded(text: str, what: str, bounds: Bounds = Bounds()) -> Any:
    """Return the value of a text of JSON.

    Args:
        what: it is, for messages ("settings").

    Raises:
        TooLarge: beyond the bounds, no JSON, a key twice, or a number that is not finite.

    >>> read_bounded('{"a": [1, 2]}', "an example")
    {'a': [1, 2]}
    """
    if len(text) > bounds.length:
        raise TooLarge(f"Expected {what} of at most {bounds.length} characters, got {len(text)}")
    depth = _depth(text)
    if depth > bounds.depth:
        raise TooLarge(f"Expected {what} nested at most {bounds.depth} deep, got {depth}")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_not_finite, parse_float=_finite
        )
    except TooLarge as error:
        raise TooLarge(f"Expected {what}: {error}") from None
    except ValueError as error:
        raise TooLarge(f"Expected {what} as JSON: {error}") from None
    for problem in _problems(value, bounds):
        raise TooLarge(f"Expected {what} with {problem}")
    return value


def shortened(text: object, most: int = SHOWN) -> str:
    """Return a value as a message quotes it: the first characters, and how many there were.

    >>> shortened("a" * 100, 4)
    "'aaaa'... (100 characters)"
    """
    if isinstance(text, str):
        whole = text if len(text) <= most else text[:most]
        more = "" if len(text) <= most else f"... ({len(text)} characters)"
        return repr(whole) + more
    shown = repr(text)
    return shown if len(shown) <= most else f"{shown[:most]}... ({len(shown)} characters)"


def _depth(text: str) -> int:
    """Return the nesting depth of brackets outside of quoted texts, in one pass."""
    depth = deepest = 0
    quoted, skipped = False, -1
    for found in _MARKS.finditer(text):
        mark, place = found.group(), found.start()
        if quoted:
            if mark == "\\" and place != skipped:
                skipped = place + 1
            elif mark == '"' and place != skipped:
                quoted = False
        elif mark == '"':
            quoted = True
        elif mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise TooLarge(f"each key once, got {shortened(key)} twice")
            seen.add(key)
    return found


def _finite(text: str) -> float:
    """Read a number; one beyond the largest float (1e999) would become an infinity."""
    value = float(text)
    return value if math.isfinite(value) else _not_finite(shortened(text, 20))


def _not_finite(name: str) -> Any:
    raise TooLarge(f"finite numbers, got {name}")


def _problems(value: Any, bounds: Bounds) -> Iterator[str]:
    """Yield each part of a value that is too large, without recursion."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str) and len(part) > bounds.text:
            yield f"texts of at most {bounds.text} characters, got one of {len(part)}"
        if isinstance(part, list | dict):
            if len(part) > bounds.members:
                yield f"lists of at most {bounds.members} entries, got one of {len(part)}"
            waiting.extend(part.values() if isinstance(part, dict) else part)
        if isinstance(part, dict):
            for key in part:
                if len(key) > bounds.key:
                    yield f"keys of at most {bounds.key} characters, got one of {len(key)}"
