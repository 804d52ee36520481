"""Texts that are none: a missing value's name is warned of, a conversation as Python prints it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedllm.data.formats.records import DataError, TextDataset
from fedllm.data.formats.sources import load_file, load_folder
from fedllm.data.record_forms import text_fault
from fedllm.data.repeated_records import warnings_of_repeats
from fedllm.data.silos import Silo
from fedllm.data.suspicious import warnings_of_missing
from fedllm.data.usable_rows import checked
from fedllm.settings.kinds import RecordColumns

TURNS = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": "so"}]
COLUMNS = RecordColumns(("text",), "answer")


@pytest.mark.parametrize(
    "value", [str(TURNS), str(TURNS[0]), f" {TURNS} ", str([{"from": "a", "value": "b"}])]
)
def test_a_printed_conversation_is_a_fault(value: str) -> None:
    assert "a conversation as Python prints it" in str(text_fault(value))


@pytest.mark.parametrize(
    "value", ["text", "[1, 2]", "{'a': 1}", json.dumps(TURNS), "He said {'role': 'user'}", "None"]
)
def test_other_texts_are_none(value: str) -> None:
    assert text_fault(value) is None


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_bad_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"t{i}", "answer": "a"} for i in range(9)]
    rows[3]["answer"], rows[7]["answer"], rows[8]["text"] = str(TURNS), None, ""
    file = write(tmp_path / "a.jsonl", rows)
    file.write_text(
        "\n" + file.read_text(encoding="utf-8"), encoding="utf-8"
    )  # a blank line counts
    with pytest.raises(DataError, match="3 of 9 records") as raised:
        checked(load_file(file).select([8, 7, 3, *range(3), 4, 5, 6], "silo A"), COLUMNS, "refuse")
    assert f"the first: {file} line 10, {file} line 9, {file} line 5. " in str(raised.value)


def test_places_follow_each_format(tmp_path: Path) -> None:
    csv = tmp_path / "one" / "a.csv"
    csv.parent.mkdir()
    csv.write_text('text,answer\n"two\nlines",x\nb,y\n', encoding="utf-8")
    (tmp_path / "b.json").write_text('[{"text": "a"}, {"text": "b"}]', encoding="utf-8")
    write(tmp_path / "one" / "c.jsonl", [{"text": "a", "answer": "b"}])
    assert load_file(csv).place(1) == f"{csv} line 4"
    assert load_file(tmp_path / "b.json").place(1) == f"{tmp_path / 'b.json'} element 2"
    folder = load_folder(tmp_path / "one", silo_column="o", columns=("text", "answer"))
    assert [folder.place(row) for row in (0, 2)] == [
        f"{csv} line 3",
        f"{tmp_path / 'one' / 'c.jsonl'} line 1",
    ]
    assert TextDataset([{"text": "a"}], "n", ("text",)).place(0) == "record 0 (counted from 0)"


def test_texts_for_a_missing_value_are_warned_of(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": f"t{i}", "answer": "nothing is None"} for i in range(6)
    ]
    rows[1]["answer"] = rows[4]["answer"] = "None"
    rows[2]["answer"] = ["good", "nan"]
    found = warnings_of_missing([load_file(write(tmp_path / "a.jsonl", rows))], ("text", "answer"))
    (only,) = found
    assert only.startswith("3 training records hold the text 'None' or 'nan' in column 'answer'")
    assert f"the first: {tmp_path / 'a.jsonl'} line 2, {tmp_path / 'a.jsonl'} line 3, " in only


def test_the_share_of_copies_is_said() -> None:
    names = ("text",)
    texts = ["once", *["often"] * 21, *[f"t{i}" for i in range(8)]]
    data = TextDataset([{"text": text} for text in texts], "A", names)
    (only,) = warnings_of_repeats([Silo("A", data, TextDataset([], "A", names))], names)
    assert "one of them 21 times (silo A)" in only
    assert "66.7% of all 30 are copies" in only
