"""Redact local file paths from messages sent to the server."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from client.config import SiloConfig

REDACTED = "(path)"
# An absolute path, or one below a home folder, that begins a word; the slashes of a URL do not, file: apart.
_ABSOLUTE = re.compile(
    r"(?:(?<=file://)|(?<![\w./~)-]))~?/(?!/)(?:[^\s'\"`,;:()<>\[\]{}]|:(?=[^\s:]))+"
)


def redact_paths(text: str, own: SiloConfig | None = None) -> str:
    """Return a message with each path of this machine replaced by :data:`REDACTED`.

    A folder's or a file's name may tell of patients, people or the network's layout; the silo's own log has
    the whole message.

    Args:
        own: the silo's file, whose paths are found also where they hold spaces; None knows of none.

    Guarantee: the result holds none of the paths in the silo's file, nor a home or temporary folder of this
    machine; nor any other absolute path without white space, quotes and brackets in it that begins a word.
    """
    places = {str(Path.home()), tempfile.gettempdir()}
    if own is not None:
        named = (
            *(own.ledger, own.state, own.log, own.cache, own.approved),
            *(own.data.path, own.model.path),
        )
        for place in filter(None, named):
            places |= {place, str(Path(place).parent)}
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = re.sub(re.escape(place) + r"(/[^\s'\"`,;:()]*)?", REDACTED, text)
    return _ABSOLUTE.sub(REDACTED, text)
