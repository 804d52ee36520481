"""A refused reply, and a stranger's values as text that every log can hold."""

from __future__ import annotations

from typing import Any

LONGEST_REASON = 2000
"""Characters of a node's own words that are kept; a client sends no more."""
_LONGEST_VALUE = 80


class ReplyRefused(ValueError):
    """A node's reply is not usable; the message names the field, its value and what was expected."""


def one_line(text: str, most: int = LONGEST_REASON) -> str:
    """Return a stranger's text as one printable line of at most ``most`` characters, escapes counted.

    Control characters (of a terminal too), lone surrogates and the like become escapes, white space a blank.

    >>> one_line("no\\n data\\x1b[2J")
    'no data\\\\x1b[2J'
    """
    words = " ".join(text[: 2 * most].split())
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)
    return escaped if len(escaped) <= most else escaped[: most - 1] + "…"


def shown(value: Any) -> str:
    """Return a stranger's value in a message: its beginning alone, whatever its size."""
    if isinstance(value, str | bytes):
        part = repr(value[:_LONGEST_VALUE])
        more = len(value) - _LONGEST_VALUE
        return one_line(part if more <= 0 else f"{part} and {more} more")
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, list | tuple):
        items = ", ".join(shown(item) for item in value)
        return one_line(f"({items})" if isinstance(value, tuple) else f"[{items}]")
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a number of {value.bit_length()} bits"
    return one_line(repr(value), _LONGEST_VALUE)
