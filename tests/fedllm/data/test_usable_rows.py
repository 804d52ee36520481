"""Records that cannot be used are found when the data are opened, by one rule, each by itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedllm.data.formats.records import DataError, TextDataset
from fedllm.data.silos import Silo, load_silo_file
from fedllm.data.usable_rows import checked
from fedllm.models.backbone import load_backbone
from fedllm.models.embedded import ModelError
from fedllm.settings.kinds import RecordColumns
from fedllm.silo.opened import open_silo_data
from fedllm.training.tunable import make_tunable, shared_tunable

Make = Callable[..., Any]
GOOD = {"text": "w5 w6", "label": "low"}
BAD: dict[str, dict[str, Any]] = {
    "null": {"text": None},
    "NaN": {"text": float("nan")},
    "a number": {"text": 12},
    "a list": {"text": ["w5"]},
    "blank": {"text": " \n"},
    "empty": {"text": ""},
    "half a character": {"text": "w5 \ud83d w6"},
    "an unknown class": {"label": "Low"},
    "a class that is null": {"label": None},
    "a class that is NaN": {"label": float("nan")},
    "a class that is a truth value": {"label": True},
}
"""What is wrong with one record, as changes of a good one."""


def dataset(*records: dict[str, Any]) -> TextDataset:
    return TextDataset(list(records), "rows", ("text", "label"))


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_a_bad_row_is_refused_or_left_out(
    change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    data = dataset(GOOD, GOOD | change, GOOD)
    columns = RecordColumns(("text",), "label", "class", ("low", "high"))
    with pytest.raises(DataError, match="1 of 3 records of rows cannot be used") as raised:
        checked(data, columns, "refuse")
    assert "the first: record 1 (counted from 0)" in str(raised.value)
    with caplog.at_level(logging.WARNING):
        assert checked(data, columns, "drop").records == [GOOD, GOOD]
    assert "1 of 3 records" in caplog.text
    with pytest.raises(DataError, match="got none"):
        checked(dataset(GOOD | change), columns, "drop")


def test_a_target_may_be_a_text_or_several() -> None:
    good = [{"text": "w5", "label": value} for value in ("w7", ["w7", "w8"])]
    bad = [{"text": "w5", "label": value} for value in (None, [], ["w7", None], "\udcff", 3)]
    kept = checked(dataset(*good, *bad), RecordColumns(("text",), "label"), "drop")
    assert kept.records == good


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_simulation_and_own_file_keep_the_same_rows(
    change: dict[str, Any], tiny_settings: Make, tmp_path: Path
) -> None:
    records = [GOOD | {"text": f"w{i}"} for i in range(4, 9)]
    records[2] = records[2] | change
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    labels = ("low", "high")
    for rule in ("refuse", "drop"):
        settings = tiny_settings(**{"data.bad_rows": rule})
        task = shared_tunable(settings).task
        simulated = Silo("s", dataset(*records), dataset().select([]))
        own: Callable[[], Silo] = lambda: load_silo_file(path, "s", labels=labels, bad_rows=rule)  # noqa: B023, E731
        if rule == "refuse":
            with pytest.raises(DataError):
                open_silo_data(simulated, settings.data.bad_rows, task)
            with pytest.raises(DataError):
                own()
            continue
        opened = open_silo_data(simulated, settings.data.bad_rows, task)
        assert opened.silo.train.records == own().train.records
        assert len(opened.train) == 4


def test_what_only_the_model_tells_is_found_at_opening(
    tiny_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token outside the embedding, and a tokenizer that raises for one text."""
    settings = tiny_settings(**{"data.bad_rows": "drop"})
    task = make_tunable(settings, load_backbone(settings.model.name, device="cpu")).task
    tokenizer = task.backbone.tokenizer
    tokenizer.add_tokens(["w999"])
    records = [GOOD, GOOD | {"text": "w5 w999"}, GOOD | {"text": "boom"}]
    real = type(task.backbone.tokenizer).__call__

    def call(self: Any, text: Any, *args: Any, **options: Any) -> Any:
        if "boom" in text:
            raise TypeError("TextEncodeInput must be Union[...]")
        return real(self, text, *args, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", call)
    opened = open_silo_data(Silo("s", dataset(*records), dataset()), settings.data.bad_rows, task)
    assert opened.silo.train.records == [GOOD]
    refusing = tiny_settings()
    with pytest.raises(DataError, match="embeddings do not have") as raised:
        open_silo_data(Silo("s", dataset(*records), dataset()), refusing.data.bad_rows, task)
    assert "the tokenizer raises TypeError" in str(raised.value)


@pytest.mark.parametrize("longest", [60, 64, 65])
def test_examples_beyond_the_positions_are_refused_by_public_numbers(
    longest: int, tiny_settings: Make
) -> None:
    settings = tiny_settings(**{"task.max_length": longest})
    if longest > 64:
        with pytest.raises(ModelError, match=r"at most 64 positions .*task.max_length=65"):
            make_tunable(settings)
    else:
        make_tunable(settings)


WORDS: dict[str, Any] = {
    "task.prompt": "w4 {text} w5",
    "task.label_words": ["w10", "w11"],
}


def test_a_decoders_prefix_and_answer_count(tiny_settings: Make, decoder_folder: Path) -> None:
    model = {"model.name": str(decoder_folder), "prefix.length": 8}  # 128 positions
    make_tunable(tiny_settings(**model, **WORDS, **{"task.max_length": 120}))
    with pytest.raises(ModelError, match=r"allow 129 \(task.max_length=121, prefix.length=8\)"):
        make_tunable(tiny_settings(**model, **WORDS, **{"task.max_length": 121}))
    writes = {"task.kind": "generation", "task.labels": None, "task.target": "answer"}
    make_tunable(tiny_settings(**model, **writes, **{"task.max_length": 60}))
    long = {"task.max_length": 30, "evaluation.max_new_tokens": 100}
    with pytest.raises(ModelError, match=r"allow 138 .*evaluation.max_new_tokens=100"):
        make_tunable(tiny_settings(**model, **writes, **long))


@pytest.mark.parametrize("count", [1, 5, 30, 300])
def test_no_feature_is_longer_than_its_public_bound(
    count: int, tiny_settings: Make, decoder_folder: Path
) -> None:
    """The bound holds whatever the text, and for wordings longer than max_length."""
    model = {"model.name": str(decoder_folder), "task.max_length": 12}
    records = [{"text": " ".join(["w7"] * count), "label": "low", "answer": "w8 " * count}]
    for changes in (
        WORDS,
        WORDS | {"task.prompt": "w9 " * 20 + "{text}"},
        {"task.kind": "generation", "task.labels": None, "task.target": "answer"},
    ):
        task = make_tunable(tiny_settings(**model | changes)).task
        (feature,) = task.features(records)
        assert task.longest is not None
        assert 0 < len(feature) <= task.longest
