"""Settings end at the factories: few functions take them, and few ask whether there is privacy."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("privacy", "fedllm", "client", "server", "simulations")
WHOLE = {"Settings", "SettingsTree", "Settings | None"}
MOST_FUNCTIONS = 180
"""Functions that take the whole settings; it may fall, and not grow."""
MOST_MODES = 44
"""Comparisons of ``privacy.mode``; they may become fewer, and not more."""
NUMBERS = (
    "fedllm/codec",
    "fedllm/flatness",
    "fedllm/models",
    "fedllm/tasks",
    "fedllm/training/batch",
    "fedllm/training/black_box",
    "server/extensions/adaptive_clip.py",
    "server/extensions/zeroth_order.py",
    "server/replies",
)
"""Rooms where only factories take the whole settings."""
FACTORIES = {"of", "begin", "check_positions", "duplicate_events", "settings_with_releases"}
"""Factories that are not called ``make_...``, and what checks or completes settings before a run."""
OF_CHOICE = {"settings", "settings_of"}
"""Methods of the choice of layers, which make settings of settings."""


@cache
def takes_settings() -> list[tuple[str, str]]:
    """File and name of each function that takes the whole settings."""
    return list(_takes_settings())


def _takes_settings() -> Iterator[tuple[str, str]]:
    for path, tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            kinds = {ast.unparse(a.annotation) for a in given if a.annotation is not None}
            if kinds & WHOLE:
                yield path, node.name


def compares_mode() -> Iterator[str]:
    """File of each comparison of ``privacy.mode``."""
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith("privacy.mode"):
                yield path


@cache
def sources() -> list[tuple[str, ast.Module]]:
    return [
        (str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8")))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def test_no_more_functions_take_the_settings() -> None:
    found = Counter(path for path, _ in takes_settings())
    assert found.total() <= MOST_FUNCTIONS, found.most_common(10)
    assert found.total() > MOST_FUNCTIONS - 10, "lower MOST_FUNCTIONS to what is left"


def test_no_more_places_ask_for_the_mode_of_privacy() -> None:
    found = Counter(compares_mode())
    assert found.total() <= MOST_MODES, found.most_common(10)
    assert found.total() > MOST_MODES - 5, "lower MOST_MODES to what is left"


@pytest.mark.parametrize("room", NUMBERS)
def test_only_factories_take_settings(room: str) -> None:
    assert (ROOT / room).exists()
    for path, name in takes_settings():
        if path == room or path.startswith(f"{room}/"):
            known = FACTORIES | (OF_CHOICE if path.endswith("layer_choice.py") else set())
            assert name.startswith("make_") or name in known, (path, name)
