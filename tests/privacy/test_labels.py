"""Labels of streams never run into each other, whatever they hold."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from privacy.randomness import generator

# The letters that mark a label's type among them, which a careless encoding would confuse.
_LABEL = st.one_of(
    st.text("sbi1\x00", max_size=4),
    st.binary(max_size=3),
    st.sampled_from([b"s", b"bs", b"i1"]),
    st.integers(-12, 12),
)
_LABELS = st.lists(_LABEL, max_size=4).map(tuple)


def kinds(labels: tuple[str | int | bytes, ...]) -> list[tuple[str, str | int | bytes]]:
    return [(type(label).__name__, label) for label in labels]


@given(_LABELS, _LABELS)
@example(("asb", "c"), ("a", "bsc"))
@example(("a", 1), ("ai1",))
@example(("a", b"b"), ("abb",))
@example((1, 23), (12, 3))
@example(("", ""), ("",))
@settings(max_examples=300, deadline=None)
def test_streams_are_the_same_only_for_the_same_labels(
    a: tuple[str | int | bytes, ...], b: tuple[str | int | bytes, ...]
) -> None:
    same = generator(5, *a).bytes(16) == generator(5, *b).bytes(16)
    assert same == (kinds(a) == kinds(b))
