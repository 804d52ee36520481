"""Format an error with its traceback as text that every log can hold (lone surrogates escaped)."""

from __future__ import annotations

import traceback


def printable_error(error: BaseException) -> str:
    """Return the error's traceback; characters outside UTF-8 as escapes."""
    text = "".join(traceback.format_exception(error)).rstrip()
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
