"""SHA-256 over all fields of a dataclass; a field added later is included automatically."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


class Fingerprinted:
    """Base of a frozen dataclass of plain values: str, int, float, bool, None and tuples of them."""

    def fingerprint(self) -> str:
        """SHA-256 of the class's name and of each field's name, type and value; floats to the last bit.

        Raises:
            TypeError: a field holds anything else.
        """
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        named = [[field.name, _plain(getattr(self, field.name))] for field in fields]
        text = json.dumps([type(self).__name__, named])
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return ["int", str(value)]
    if isinstance(value, float):
        return ["float", value.hex()]
    if isinstance(value, tuple):
        return ["tuple", [_plain(part) for part in value]]
    raise TypeError(f"Expected str, int, float, bool, None or a tuple of them, got {value!r}")
