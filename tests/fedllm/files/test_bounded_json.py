"""JSON from somebody else: what is within the bounds is read as json reads it, what is beyond is refused in time."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.files.bounded_json import Bounds, TooLarge, read_bounded, shortened

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=20,
)
SMALL = Bounds(length=100, depth=3, members=3, text=10, key=4)


@given(value=VALUES, indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_what_is_within_the_bounds_is_read(
    value: Any, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read_bounded(text, "a value") == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"' + "a" * 99 + '"', "of at most 100 characters, got 101"),
        ("[[[[1]]]]", "nested at most 3 deep, got 4"),
        ('{"a": {"a": {"a": {}}}}', "nested at most 3 deep, got 4"),
        ("[" * 90, "nested at most 3 deep, got 90"),
        ("[1, 2, 3, 4]", "lists of at most 3 entries, got one of 4"),
        ('["aaaaaaaaaaa"]', "texts of at most 10 characters, got one of 11"),
        ('{"aaaaa": 1}', "keys of at most 4 characters, got one of 5"),
        ('{"a": 1, "a": 2}', "each key once, got 'a' twice"),
        ('[{"a": 1, "a": 1}]', "each key once"),
        ("NaN", "finite numbers, got NaN"),
        ("[-Infinity]", "finite numbers, got -Infinity"),
        ("[1e999]", "finite numbers, got '1e999'"),
        ("-1e999", "finite numbers, got '-1e999'"),
        ("{", "as JSON"),
        ("", "as JSON"),
        ("]" * 50, "as JSON"),
    ],
)
def test_what_is_beyond_is_refused(text: str, said: str) -> None:
    with pytest.raises(TooLarge, match=said) as raised:
        read_bounded(text, "something", SMALL)
    assert str(raised.value).startswith("Expected something")
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "text", ['["[[[["]', r'["\"[[[["]', r'["\\", "[[["]', '{"[[": "]]"}', r'["\\\"[[["]']
)
def test_brackets_in_quotes_do_not_nest(text: str) -> None:
    assert read_bounded(text, "something", SMALL) == json.loads(text)


@pytest.mark.parametrize("unit", ["[", '"', '\\"', "{", '{"a":', "\\", '["', "]"])
def test_a_megabyte_of_anything_is_refused_in_time(unit: str) -> None:
    began = time.monotonic()
    with pytest.raises(TooLarge):
        read_bounded((unit * (1 << 20))[: 1 << 20], "something")
    assert time.monotonic() - began < 5


def test_a_quote_is_short() -> None:
    assert shortened("abc") == "'abc'"
    assert shortened("a" * 10**6) == f"{'a' * 80!r}... (1000000 characters)"
    assert len(shortened(["x" * 10**6])) < 120
