"""Silos and the server's evaluation examples: disjoint, the same everywhere, clear errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedllm.data.formats.records import DataError
from fedllm.data.public import evaluation_set, evaluation_source
from fedllm.data.silos import load_federation, load_silo_file, with_columns

Make = Callable[..., Any]


def texts(dataset: Any) -> list[str]:
    return [record["text"] for record in dataset.records]


def test_natural_silos_keep_their_own_examples(tiny_settings: Make) -> None:
    federation = load_federation(tiny_settings())
    assert {s.name: len(s.train) for s in federation.silos} == {
        "alpha": 60,
        "beta": 45,
        "gamma": 30,
        "delta": 24,
    }
    for silo in federation.silos:
        assert {record["organisation"] for record in silo.train.records} == {silo.name}
        assert len(silo.held_out) == 0
    assert len(federation.evaluation) == 40
    assert federation.names == [s.name for s in federation.silos]


def test_held_out_examples_never_train_and_depend_on_their_own_text_alone(
    tiny_settings: Make, word_files: Path, tmp_path: Path
) -> None:
    settings = tiny_settings(**{"evaluation.clients_holdout": 0.3})
    rows = [json.loads(line) for line in (word_files / "train.jsonl").open(encoding="utf-8")]
    federation = load_federation(settings)
    sides = {}
    for silo in federation.silos:
        train, held = set(texts(silo.train)), set(texts(silo.held_out))
        assert held
        assert not train & held
        assert len(silo.train) + len(silo.held_out) == sum(
            row["organisation"] == silo.name for row in rows
        )
        sides |= dict.fromkeys(train, "train") | dict.fromkeys(held, "held out")
    # One example removed: every other stays on its side.
    for name in ("train", "validation"):
        lines = (word_files / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines[1:]) + "\n", encoding="utf-8")
    again = tiny_settings(**{"evaluation.clients_holdout": 0.3, "data.path": str(tmp_path)})
    for silo in load_federation(again).silos:
        assert all(sides[text] == "train" for text in texts(silo.train))
        assert all(sides[text] == "held out" for text in texts(silo.held_out))


def test_server_holdout_is_in_no_silo(tiny_settings: Make) -> None:
    settings = tiny_settings(
        **{
            "data.validation": None,
            "data.holdout": 0.25,
            "evaluation.clients_holdout": 0.25,
            "evaluation.max_examples": None,
        }
    )
    federation = load_federation(settings)
    server = set(texts(federation.evaluation))
    assert len(server) > 15
    held = 0
    for silo in federation.silos:
        assert not server & set(texts(silo.train))
        assert not server & set(texts(silo.held_out))
        held += len(silo.held_out)
    assert held > 10, "the same hash for both would hold out nothing"
    assert evaluation_set(settings).records == federation.evaluation.records


def test_no_default_hands_the_server_a_silos_text(tiny_settings: Make, word_files: Path) -> None:
    settings = tiny_settings(**{"data.validation": None})
    federation = load_federation(settings)
    assert evaluation_source(settings.data, settings.public) == "none"
    assert len(evaluation_set(settings)) == len(federation.evaluation) == 0
    rows = (word_files / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(len(silo.train) for silo in federation.silos) == len(rows)


def test_evaluation_is_cut_by_hash(tiny_settings: Make) -> None:
    few = evaluation_set(tiny_settings(**{"evaluation.max_examples": 10}))
    more = evaluation_set(tiny_settings(**{"evaluation.max_examples": 20}))
    assert (len(few), len(more)) == (10, 20)
    assert set(texts(few)) < set(texts(more))
    assert texts(few) != texts(evaluation_set(tiny_settings()))[:10]


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pathological"])
def test_synthetic_partitions_divide_without_overlap(kind: str, tiny_settings: Make) -> None:
    changes = {"data.partition": kind, "data.silos": 3}
    first = load_federation(tiny_settings(**changes))
    assert len(first.silos) == 3
    assert sum(len(s.train) for s in first.silos) == 159
    other = load_federation(tiny_settings(**changes, seed=8))
    assert [texts(s.train) for s in first.silos] != [texts(s.train) for s in other.silos]
    load_federation.__globals__["_load"].cache_clear()
    again = load_federation(tiny_settings(**changes))
    assert [texts(s.train) for s in first.silos] == [texts(s.train) for s in again.silos]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data.partition": "iid"}, "data.silos"),
        ({"data.silo_column": "company"}, "company"),
        ({"data.train": "absent.jsonl"}, "absent.jsonl"),
        ({"data.silo_names": ["alpha", "omega"]}, "omega"),
        ({"task.text": ["body"], "evaluation.clients_holdout": 0.2}, "body"),
    ],
)
def test_what_is_wrong_with_the_data_is_named(
    changes: dict[str, Any], named: str, tiny_settings: Make
) -> None:
    with pytest.raises(DataError, match=named):
        load_federation(tiny_settings(**changes))


def test_a_silo_from_its_own_file(word_files: Path) -> None:
    path = word_files / "validation.jsonl"
    silo = load_silo_file(path, "own", labels=("low", "high"))
    assert silo.name == "own"
    assert len(silo.train) == 40
    assert silo.train.columns == ("text", "label")  # no other column is kept
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        load_silo_file(word_files / "absent.jsonl", "own")
    with pytest.raises(DataError, match="low"):
        load_silo_file(path, "own", labels=("high",))
    other = with_columns(silo, {"text": "body", "label": "class"})
    assert other.train.columns == ("body", "class")
    assert other.train[3] == {"body": silo.train[3]["text"], "class": silo.train[3]["label"]}


def test_a_silo_holds_out_by_its_own_seed(word_files: Path) -> None:
    def held(seed: int) -> list[str]:
        options = {"labels": ("low", "high"), "holdout": 0.3, "holdout_seed": seed}
        silo = load_silo_file(word_files / "validation.jsonl", "own", **options)
        assert len(silo.train) + len(silo.held_out) == 40
        return [row["text"] for row in silo.held_out]

    assert held(1) == held(1)
    assert held(1) != held(2)
