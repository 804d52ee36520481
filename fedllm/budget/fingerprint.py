"""SHA-256 over all fields of a dataclass; a field added later is included automatically."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
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
        values = {field.name: getattr(self, field.name) for field in fields}
        named = [[name, value] for name, value in zip(values, _plain(values.values()), strict=True)]
        text = json.dumps([type(self).__name__, named])
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value is None or isinstance(value, bool | str):
            found.append(value)
        elif isinstance(value, int):
            found.append(["int", str(value)])
        elif isinstance(value, float):
            found.append(["float", value.hex()])
        elif isinstance(value, tuple):
            found.append(["tuple", _plain(value)])
        elif isinstance(value, Tensor):
            found.append(["tensor", params_digest({"": value})])
        elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            names = sorted(value)
            plain = _plain(value[name] for name in names)
            found.append(["mapping", [list(pair) for pair in zip(names, plain, strict=True)]])
        else:
            raise TypeError(
                "Expected str, int, float, bool, None, tensors, and tuples or mappings of them, got "
                f"{type(value).__name__}"
            )
    return found
