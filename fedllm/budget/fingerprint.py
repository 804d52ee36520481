"""SHA-256 over all fields of a dataclass; a field added later is included automatically."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedllm.budget.release_id import params_digest


class Fingerprinted:
    """Base of a frozen dataclass of str, int, float, bool, None and tensors, and of tuples and mappings of them."""

    def fingerprint(self) -> str:
        """SHA-256 of the class's name and of each field's name, type and value; floats and tensors to the last bit.

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
    if isinstance(value, Tensor):
        return ["tensor", params_digest({"": value})]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return ["mapping", [[key, _plain(value[key])] for key in sorted(value)]]
    raise TypeError(
        "Expected str, int, float, bool, None, tensors, and tuples or mappings of them, got "
        f"{type(value).__name__}"
    )
