"""Records of each form: from the files that hold them to what a task reads; the guide's examples are such records."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedllm.data.formats.records import DataError
from fedllm.data.public import evaluation_set, load_public
from fedllm.data.record_forms import (
    fault_of,
    labels_of,
    messages_of,
    number_of,
    row_fault,
    tags_of,
    words_of,
)
from fedllm.data.silos import load_federation
from fedllm.settings.io import parse_settings
from tests.support import task_files

ROOT = Path(__file__).resolve().parents[3]
KINDS = tuple(task_files.SETTINGS)


@pytest.fixture
def settings_of(tiny_settings: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def make(kind: str, **changes: Any) -> Any:
        folder = task_files.save(kind, tmp_path / "data")
        own = {"task.kind": kind, "data.path": str(folder), **task_files.SETTINGS[kind]}
        return tiny_settings(**own | changes)

    return make


def rows_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "train.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_holds_what_json_lines_hold(kind: str, settings_of: Any, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as writer

    settings = settings_of(kind)
    writer.write_table(
        pyarrow.Table.from_pylist(rows_of(tmp_path / "data")), tmp_path / "data" / "train.parquet"
    )
    found = load_federation(settings)
    again = load_federation(settings_of(kind, **{"data.train": "train.parquet"}))
    assert found.names == again.names
    assert sorted(found.names) == ["alpha", "beta", "delta", "gamma"]
    for a, b in zip(found.silos, again.silos, strict=True):
        assert a.train.records == b.train.records
        assert all(row_fault(record, settings.task.columns) is None for record in b.train)


@pytest.mark.parametrize("kind", ["multilabel", "regression", "tokens"])
def test_delimited_text_holds_them_as_texts(kind: str, settings_of: Any, tmp_path: Path) -> None:
    settings = settings_of(kind)
    columns = settings.task.columns
    between = {"multilabel": "|", "tokens": " ", "regression": ""}[kind]
    rows = rows_of(tmp_path / "data")
    with (tmp_path / "data" / "train.csv").open("w", encoding="utf-8", newline="") as file:
        written = csv.DictWriter(file, list(rows[0]))
        written.writeheader()
        for row in rows:
            written.writerow(
                {k: between.join(v) if isinstance(v, list) else v for k, v in row.items()}
            )
    texts = load_federation(settings_of(kind, **{"data.train": "train.csv"}))
    lists = load_federation(settings)
    read: dict[str, Callable[[Any], Any]] = {
        "multilabel": lambda value: labels_of(value, columns.labels, "|"),
        "regression": number_of,
        "tokens": lambda value: tags_of(value, columns.labels),
    }
    for a, b in zip(lists.silos, texts.silos, strict=True):
        for first, second in zip(a.train, b.train, strict=True):
            assert read[kind](first[columns.target]) == read[kind](second[columns.target])
            assert row_fault(second, columns) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["refuse", "drop"])
def test_a_bad_record_follows_the_rule(kind: str, rule: str, settings_of: Any) -> None:
    settings = settings_of(kind, **{"data.bad_rows": rule})
    column = settings.task.target
    path = Path(settings.data.path) / "validation.jsonl"
    lines = path.read_text("utf-8").splitlines()
    bad = json.loads(lines[3]) | {
        column: {"multilabel": ["none"], "regression": "x", "tokens": ["O"] * 99, "chat": []}[kind]
    }
    lines[3] = json.dumps(bad)
    path.write_text("\n".join(lines), encoding="utf-8")
    if rule == "drop":
        assert len(evaluation_set(settings)) == 39
        return
    with pytest.raises(DataError, match=r"1 of 40 records .*cannot be used"):
        evaluation_set(settings)


@pytest.mark.parametrize("kind", KINDS)
def test_public_records_are_of_the_tasks_form(kind: str, settings_of: Any, tmp_path: Path) -> None:
    public = tmp_path / "public.jsonl"
    records = [r | {"text": r["text"] + " w9"} for r in task_files.make_records(20, 1234)]
    public.write_text(
        "".join(json.dumps(task_files.in_form(kind, r)) + "\n" for r in records), "utf-8"
    )
    own = {"public.source": "files", "public.path": str(public)}
    settings = settings_of(kind, **own)
    assert len(load_public(settings).dataset) == 20
    public.write_text(
        '{"messages": "a", "text": "", "tokens": [], "labels": [], "score": 1, "tags": []}\n',
        "utf-8",
    )
    with pytest.raises(DataError):
        load_public(settings)


def test_tweets_are_no_conversations(settings_of: Any) -> None:
    with pytest.raises(DataError, match="str in place of a list of messages"):
        load_public(settings_of("chat", **{"public.source": "tweets"}))


def test_readers_name_the_fault_and_not_the_value_of_a_text() -> None:
    assert (
        fault_of(messages_of, [{"role": "user", "content": 3}])
        == "message 0 ('user'): int in place of text"
    )
    assert fault_of(messages_of, [{"role": "system", "content": ""}]) is None
    assert fault_of(number_of, "1e400") == "inf in place of a finite number"
    assert fault_of(words_of, ["a", 3]) == "a word: int in place of text"
    assert tags_of(["1", 1, "x"], ["x", "1"]) == [1, 1, 0], (
        "a tag that is written as a number is that tag"
    )


def test_the_guides_examples_are_records_of_their_settings() -> None:
    guide = (ROOT / "docs" / "guides" / "tasks.md").read_text("utf-8")
    pairs = re.findall(r"```json\n(.*?)```\s*```toml\n(.*?)```", guide, re.S)
    kinds = []
    for record, text in pairs:
        tree = tomllib.loads(text)
        tree["task"].setdefault("kind", "classification")
        task = parse_settings(tree).task
        assert row_fault(json.loads(record), task.columns) is None
        kinds.append(task.kind)
    assert kinds == ["chat", "multilabel", "regression", "tokens"]
