"""Extracts as texts: what is signed, what is refused before it costs anything, rows listed and written out again."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vouching import Silo, deployed

from fedllm.report.extract.keys import (
    EXTRACT,
    HEAD,
    KeyProblem,
    load_node_key,
    load_signing_key,
    node_key_of,
)
from fedllm.report.extract.run_rows import entries_of, items_of, ranges
from fedllm.report.extract.statement import (
    LONGEST,
    Extract,
    ExtractError,
    Head,
    RowsItem,
    parse,
    text_of,
)
from privacy.events.constructors import dp_sgd, gaussian
from privacy.ledger.ledger import Ledger


@pytest.fixture(scope="module")
def silo(tmp_path_factory: pytest.TempPathFactory) -> Silo:
    return Silo(tmp_path_factory.mktemp("silo"), "A")


@pytest.fixture(scope="module")
def extract(tmp_path_factory: pytest.TempPathFactory) -> Extract:
    run, silos = deployed(tmp_path_factory.mktemp("run"))
    return silos[0].extract(run)


def test_a_signature_is_of_one_text_one_key_and_one_kind(silo: Silo, tmp_path: Path) -> None:
    key, signature = silo.key.public, silo.key.sign(EXTRACT, "text")
    assert key.verifies(EXTRACT, "text", signature)
    assert not key.verifies(EXTRACT, "text ", signature)
    assert not key.verifies(HEAD, "text", signature), "a head's signature serves for no extract"
    other = Silo(tmp_path, "B").key
    assert not other.public.verifies(EXTRACT, "text", signature)
    for damaged in ("", "zz", signature[:-2], signature + "00", "30" * 10**6):
        assert not key.verifies(EXTRACT, "text", damaged)


def test_keys_are_read_from_files_and_known_by_openssh_fingerprint(silo: Silo) -> None:
    public = load_node_key(silo.folder / "A.pub")
    assert public == silo.key.public == node_key_of(public.line + " a comment")
    if shutil.which("ssh-keygen"):
        line = subprocess.run(
            ["ssh-keygen", "-lf", silo.folder / "A.pub"], capture_output=True, text=True, check=True
        ).stdout
        assert line.split()[1] == public.fingerprint


def test_keys_that_cannot_be_used_are_refused_by_name(silo: Silo, tmp_path: Path) -> None:
    with pytest.raises(KeyProblem, match=r"Expected a node's private key at .*none: there is none"):
        load_signing_key(tmp_path / "none")
    with pytest.raises(KeyProblem, match="Expected a node's private key in"):
        load_signing_key(silo.folder / "A.pub")
    with pytest.raises(KeyProblem, match="Expected an OpenSSH public key in"):
        load_node_key(silo.folder / "node.key")
    if shutil.which("ssh-keygen"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")]
        subprocess.run(command, check=True)
        with pytest.raises(KeyProblem, match="Expected an ECDSA key"):
            load_signing_key(tmp_path / "other")
        with pytest.raises(KeyProblem, match="Expected an ECDSA key"):
            load_node_key(tmp_path / "other.pub")


def test_a_statement_comes_back_as_it_was(extract: Extract) -> None:
    text = text_of(extract)
    assert text.isascii()
    assert parse(Extract, text) == extract
    assert text_of(parse(Extract, text)) == text
    assert len(text) < 5000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_changed_statement_is_read_or_refused_in_one_way(extract: Extract, data: Any) -> None:
    """Whatever stands in the place of any field: an extract, or an ExtractError; never another error."""
    tree = json.loads(text_of(extract))
    place: Any = tree
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        deeper = isinstance(place[key], dict | list) and place[key]
        if not deeper or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    with contextlib.suppress(ExtractError):
        entries_of(parse(Extract, json.dumps(tree)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nothing",
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"format": "fedllm-ledger-head"}',
        '{"rows_of_run": ' + "9" * 10_000 + "}",
        '{"delta": NaN}',
        "\ud800",
    ],
)
def test_texts_that_are_no_extract_are_refused(text: str) -> None:
    with pytest.raises(ExtractError):
        parse(Extract, text)
    with pytest.raises(ExtractError):
        parse(Head, text)


def test_a_long_text_is_refused_unread(extract: Extract) -> None:
    with pytest.raises(ExtractError, match=f"at most {LONGEST} characters"):
        parse(Extract, text_of(extract) + " " * LONGEST)


def changed(extract: Extract, **fields: Any) -> str:
    return json.dumps(json.loads(text_of(extract)) | fields)


def test_rows_that_would_fill_the_memory_are_refused(extract: Extract) -> None:
    assert extract.events is not None
    (item,) = json.loads(text_of(extract))["events"]
    for rounds in ([[1, 10**11]], [[5, 1]], [[1, 60_000], [1, 60_000]]):
        with pytest.raises(ExtractError, match="Expected"):
            parse(Extract, changed(extract, events=[item | {"rounds": rounds}]))
    many = '{"count":1000000000,"event":{"kind":"Gaussian","noise_multiplier":1.0},"kind":"SelfComposed"}'
    views = {"server": many, "outsider": many}
    found = parse(Extract, changed(extract, events=[item | {"views": views}]))
    with pytest.raises(ExtractError, match=r"at most .* uses of mechanisms"):
        entries_of(found)
    with pytest.raises(ExtractError, match="Expected 3 rows of the run, got 2"):
        parse(Extract, changed(extract, events=[item | {"rounds": [[1, 2]]}]))
    with pytest.raises(ExtractError, match="Expected at most 3 rows in all, got 5"):
        parse(Extract, changed(extract, rows_of_other_runs=2))


def test_events_that_are_none_are_refused(extract: Extract) -> None:
    (item,) = json.loads(text_of(extract))["events"]
    for event in ("{}", '{"kind":"Gaussian","noise_multiplier":-1}', "[" * 900, '{"kind":"Magic"}'):
        views = {"server": event, "outsider": event}
        found = parse(Extract, changed(extract, events=[item | {"views": views}]))
        with pytest.raises(ExtractError, match="cannot be read"):
            entries_of(found)


@given(st.lists(st.integers(0, 12), max_size=20))
def test_ranges_hold_each_round_as_often_as_it_was(rounds: list[int]) -> None:
    found = ranges(rounds)
    written = Counter(number for first, last in found for number in range(first, last + 1))
    assert written == Counter(rounds)


def test_rows_come_back_with_all_that_the_report_reads(tmp_path: Path) -> None:
    run, (silo, _) = deployed(tmp_path)
    silo.enter(run, 3, dp_sgd(0.02, 1.0, 1))  # a round that was repeated
    silo.enter(run, 4, gaussian(2.0), randomness="seeded")
    with Ledger(silo.ledger) as ledger:
        rows = ledger.entries()
    items = items_of(rows)
    assert [item.rounds for item in items] == [((1, 3), (3, 3)), ((4, 4),)]
    back = entries_of(silo.extract(run))

    def plain(row: Any) -> Any:
        views, details = (sorted(part.items()) for part in (row.views, row.details))
        return (row.run, row.party, row.unit, row.purpose, row.round, views, details)

    assert sorted(map(repr, map(plain, back))) == sorted(map(repr, map(plain, rows)))
    assert len({row.id for row in back}) == len(rows)


def test_a_long_training_is_a_short_extract(tmp_path: Path) -> None:
    """500 rounds, a few of them repeated: one item."""
    run, (silo, _) = deployed(tmp_path)
    item = RowsItem(purpose="train", rounds=((1, 500), (7, 7)), views={"a": "{}"}, details={})
    assert item.number == 501
    assert len(item.model_dump_json()) < 200
    assert len(text_of(silo.extract(run))) < 5000
