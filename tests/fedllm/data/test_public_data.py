"""Public text: the task's columns and classes, nothing of the evaluation, and not the silos' own."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedllm.data.formats.records import DataError, normalise_text
from fedllm.data.public import evaluation_set, load_public, public_set
from fedllm.data.silos import load_federation
from fedllm.settings.io import SettingsError

Make = Callable[..., Any]
Records = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def public_file(tmp_path: Path, word_records: Records) -> Path:
    path = tmp_path / "public.jsonl"
    rows = word_records(50, seed=500)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def of(path: Path, **changes: Any) -> dict[str, Any]:
    return {"public.source": "files", "public.path": str(path)} | changes


def texts(dataset: Any) -> list[str]:
    return [record["text"] for record in dataset]


def test_records_have_the_tasks_columns_alone(tiny_settings: Make, public_file: Path) -> None:
    found = public_set(tiny_settings(**of(public_file)))
    rows = [json.loads(line) for line in public_file.open(encoding="utf-8")]
    assert found.columns == ("text", "label")
    assert found.records == [{"text": row["text"], "label": row["label"]} for row in rows]


def test_texts_of_the_evaluation_are_left_out_and_counted(
    tiny_settings: Make, public_file: Path, word_files: Path
) -> None:
    """Also those that this run does not evaluate on, and those written in another case."""
    judged = [json.loads(line) for line in (word_files / "validation.jsonl").open(encoding="utf-8")]
    with public_file.open("a", encoding="utf-8") as stream:
        for row in judged:
            stream.write(json.dumps(row | {"text": "  " + row["text"].upper()}) + "\n")
    settings = tiny_settings(**of(public_file, **{"evaluation.max_examples": 3}))
    assert len(load_federation(settings).evaluation) == 3
    found = load_public(settings)
    assert (found.read, found.in_evaluation, len(found.dataset)) == (90, 40, 50)
    normalised = {normalise_text(row["text"]) for row in judged}
    assert not normalised & {normalise_text(text) for text in texts(found.dataset)}


def test_the_limit_is_by_hash_of_the_text(
    tiny_settings: Make, public_file: Path, tmp_path: Path
) -> None:
    few = public_set(tiny_settings(**of(public_file, **{"public.limit": 10})))
    more = public_set(tiny_settings(**of(public_file, **{"public.limit": 20})))
    assert (len(few), len(more)) == (10, 20)
    assert set(texts(few)) < set(texts(more))
    turned = tmp_path / "turned.jsonl"
    lines = public_file.read_text(encoding="utf-8").splitlines(keepends=True)
    turned.write_text("".join(reversed(lines)), encoding="utf-8")
    again = public_set(tiny_settings(**of(turned, **{"public.limit": 10})))
    assert set(texts(again)) == set(texts(few))


def test_other_columns_and_classes(tiny_settings: Make, tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["stars", "body"])
        writer.writerows([["1", "w5 w6"], ["3", "w7"], ["5", "w40 w41"], ["1", "w8 w9"]])
    changes = of(path, **{"public.text": ["body"], "public.target": "stars"})
    changes["public.labels"] = {"1": "low", "5": "high"}
    found = load_public(tiny_settings(**changes))
    assert found.other_classes == 1
    assert found.dataset.records == [
        {"text": "w5 w6", "label": "low"},
        {"text": "w40 w41", "label": "high"},
        {"text": "w8 w9", "label": "low"},
    ]
    # Without labels, every text counts, and the class column is not asked for.
    bare = of(path, **{"public.text": ["body"]})
    assert len(public_set(tiny_settings(**bare), labelled=False)) == 4
    with pytest.raises(DataError, match="label"):
        public_set(tiny_settings(**bare))


def test_a_share_of_public_text_is_evaluated_on_where_nothing_else_is_there(
    tiny_settings: Make, public_file: Path
) -> None:
    settings = tiny_settings(**of(public_file, **{"data.validation": None}))
    judged, trained = texts(evaluation_set(settings)), texts(public_set(settings))
    unlabelled = texts(public_set(settings, labelled=False))
    assert judged
    assert trained == unlabelled
    assert not set(judged) & set(trained)
    whole = texts(public_set(tiny_settings(**of(public_file))))
    assert set(judged) | set(trained) >= set(whole)
    assert len(judged) < len(trained)


def test_public_text_without_classes_evaluates_nothing(tiny_settings: Make, tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("text\n" + "".join(f"w{i} w9\n" for i in range(10, 50)), encoding="utf-8")
    settings = tiny_settings(**of(path, **{"data.validation": None}))
    assert len(evaluation_set(settings)) == 0
    assert len(public_set(settings, labelled=False)) > 20


def test_tweets_of_others_are_public_to_named_silos(tiny_settings: Make) -> None:
    tweets = {
        "data.source": "tweets",
        "data.validation": None,
        "data.holdout": 0.1,
        "data.silo_names": ["united", "jetblue"],
        "task.labels": ["negative", "neutral", "positive"],
        "public.source": "tweets",
        "public.limit": None,
    }
    settings = tiny_settings(**tweets)
    found = load_public(settings)
    assert found.in_evaluation > 1000, "a tenth of all tweets is the server's own"
    federation = load_federation(settings)
    own = {record["text"] for silo in federation.silos for record in silo.train.records}
    assert len(found.dataset) > 2000
    assert found.in_silos <= 0.01 * len(found.dataset)
    assert sum(text in own for text in texts(found.dataset)) <= found.in_silos


def test_what_the_silos_have_is_not_public(tiny_settings: Make, word_files: Path) -> None:
    with pytest.raises(DataError, match=r"public text of no silo.*159 of its 159"):
        public_set(tiny_settings(**of(word_files / "train.jsonl")))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"public.path": "absent.jsonl"}, "absent.jsonl"),
        ({"public.text": ["body"]}, "column 'body'"),
        ({"public.target": "stars"}, "column 'stars'"),
        ({"public.target": "answer"}, r"public\.labels"),
        ({"public.labels": {"none": "low"}}, r"public\.labels \(none\)"),
        ({"public.source": "none"}, r"public\.source"),
    ],
)
def test_what_is_wrong_with_it_is_named(
    changes: dict[str, Any], named: str, tiny_settings: Make, public_file: Path
) -> None:
    with pytest.raises(DataError, match=named):
        public_set(tiny_settings(**of(public_file, **changes)))


def test_nothing_left_is_an_error(tiny_settings: Make, word_files: Path) -> None:
    with pytest.raises(DataError, match="40 that the server evaluates on"):
        public_set(tiny_settings(**of(word_files / "validation.jsonl")))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"public.text": ["a", "b"]}, r"public\.text"),
        ({"public.labels": {"1": "middling"}}, "middling"),
        ({"public.path": None}, r"public\.path"),
    ],
)
def test_settings_that_do_not_fit_the_task(
    changes: dict[str, Any], named: str, tiny_settings: Make, public_file: Path
) -> None:
    with pytest.raises(SettingsError, match=named):
        tiny_settings(**of(public_file, **changes))
