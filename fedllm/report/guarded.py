"""Numbers next to the guarantee that may fail on what a silo's ledger holds: the rest of the report stands."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")
FAILURES = (ArithmeticError, ValueError, MemoryError, RecursionError)
"""Exceptions of accountants and special functions for parameters far outside of any mechanism's range."""

log = logging.getLogger("fedllm")


def guarded(
    part: str, problems: list[str], compute: Callable[[], Value], otherwise: Value
) -> Value:
    """Compute a part of the report; where that fails, say so among the problems.

    Args:
        part: what it is, in words.
        otherwise: what stands in its place. It must claim no more than nothing.
    """
    try:
        return compute()
    except FAILURES as error:
        log.debug("%s of the report", part, exc_info=error)
        text = f"{part} could not be computed: {type(error).__name__}: {str(error)[:200]}"
        if text not in problems:
            problems.append(text)
        return otherwise
