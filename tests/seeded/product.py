"""The product's functions by their names, wherever their files lie, so that one tool measures two layouts.

Only what `NEEDED` lists is imported. A function that is renamed gets its new name there, beside the old one.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NEEDED: dict[str, tuple[str, tuple[str, ...]]] = {
    "RunFolder": ("fedllm", ("RunFolder",)),
    "parse_settings": ("fedllm", ("parse_settings",)),
    "federate": ("simulations", ("federate",)),
    "save_encoder": ("simulations", ("save_encoder",)),
    "save_decoder": ("simulations", ("save_decoder",)),
    "make_records": ("simulations", ("make_records",)),
    "save_words": ("simulations", ("save_words",)),
    "generator": ("privacy", ("generator",)),
}
"""What is used: the package that defines it, and its names over time."""


@cache
def product(name: str) -> Any:
    """Return a function or class of `NEEDED`.

    Raises:
        LookupError: its package defines it nowhere, or in several files.
    """
    package, names = NEEDED[name]
    found = _definitions(package, names)
    if len(found) != 1:
        places = ", ".join(str(path.relative_to(ROOT)) for path, _ in found) or "no file"
        raise LookupError(
            f"Expected one definition of {' or '.join(names)} in {package}/, found {places}; "
            "tests/seeded/product.py lists the names"
        )
    path, spelled = found[0]
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return getattr(importlib.import_module(module), spelled)


def _definitions(package: str, names: tuple[str, ...]) -> list[tuple[Path, str]]:
    """The files that define one of the names at their top level; overloads of one file count once."""
    wanted = re.compile(rf"^(?:def|class) ({'|'.join(names)})\b", re.MULTILINE)
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        if match := wanted.search(path.read_text(encoding="utf-8")):
            found.append((path, match[1]))
    return found
