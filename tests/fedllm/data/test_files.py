"""Files as spreadsheets, data frames and other programs write them; what is found out is found in the header alone."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.data import DataError, label_index, load_file
from fedllm.data.formats.delimited import DELIMITERS, delimited_rows, read_header
from fedllm.data.formats.encodings import decode_text
from fedllm.data.formats.records import RowError
from fedllm.data.formats.sources import load_folder
from fedllm.data.labels import class_place
from fedllm.data.silos import load_silo_file
from fedllm.data.usable_rows import checked
from fedllm.settings.kinds import RecordColumns

COLUMNS = ("text", "label")
GOOD = [{"text": "very good", "label": "1"}, {"text": "bad, really", "label": "0"}]


def written(file: Path, raw: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return file


def read(file: Path, raw: bytes | str, **options: Any) -> list[dict[str, Any]]:
    return load_file(written(file, raw), columns=COLUMNS, **options).records


# -- delimiters and headers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "raw"),
    {
        "semicolon.csv": "text;label\nvery good;1\nbad, really;0\n",
        "tab.csv": "text\tlabel\nvery good\t1\nbad, really\t0\n",
        "tab.tsv": "text\tlabel\nvery good\t1\nbad, really\t0\n",
        "tab.txt": "text\tlabel\nvery good\t1\nbad, really\t0\n",
        "semicolon.txt": "text;label\nvery good;1\nbad, really;0\n",
        "bar.csv": "text|label\nvery good|1\nbad, really|0\n",
        "comma.tsv": 'text,label\nvery good,1\n"bad, really",0\n',
        "sep.csv": "sep=;\r\ntext;label\r\nvery good;1\r\nbad, really;0\r\n",
        "empty-lines.csv": "\r\n\r\ntext;label\r\nvery good;1\r\n\r\nbad, really;0\r\n",
        "commas-in-a-name.csv": "text;label;a,b,c,d\nvery good;1;x\nbad, really;0;y\n",
        "marked.csv": "\ufefftext;label\nvery good;1\nbad, really;0\n",
    }.items(),
)
def test_the_delimiter_is_found_in_the_header(name: str, raw: str, tmp_path: Path) -> None:
    assert read(tmp_path / name, raw) == GOOD
    assert read(tmp_path / f"{name}.gz", gzip.compress(raw.encode())) == GOOD


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_values_have_no_say_in_the_delimiter(delimiter: str) -> None:
    """However many of the other characters stand in the rows, and whether columns are looked for or not."""
    others = "".join(other for other in DELIMITERS if other != delimiter) * 5
    rows = f"a{others}b{delimiter}1\n" * 50
    text = f"text{delimiter}label\n{rows}"
    for columns in (COLUMNS, ()):
        header = read_header(text, "t", delimiter=None, first=",", columns=columns)
        assert header is not None
        assert (header.delimiter, header.names) == (delimiter, COLUMNS)


def test_the_delimiter_can_be_forced(tmp_path: Path) -> None:
    raw = "text:label\nvery good:1\nbad, really:0\n"
    with pytest.raises(DataError, match=r"column 'text' in .*odd.csv, got columns text:label"):
        read(tmp_path / "odd.csv", raw)
    assert read(tmp_path / "odd.csv", raw, delimiter=":") == GOOD


def test_columns_without_a_name_are_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The index of a data frame, and the empty columns behind a spreadsheet's table."""
    raw = ',text,label,,\n0,very good,1,,\n1,"bad, really",0,,\n'
    with caplog.at_level(logging.WARNING):
        data = load_file(written(tmp_path / "index.csv", raw))
    assert data.records == GOOD
    assert data.columns == COLUMNS
    assert "column 1, 4, 5 has no name and is not read" in caplog.text


def test_blanks_around_names_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = 'text, label , "note"\nvery good, 1, x\n"bad, really", 0, "a, b"\n'
    with caplog.at_level(logging.WARNING):
        data = load_file(written(tmp_path / "spaces.csv", raw))
    assert data.columns == (*COLUMNS, "note")
    assert data.records[1] == GOOD[1] | {"note": "a, b"}
    assert label_index(data, "label", ["0", "1"])[0] == [1, 0]
    assert "blanks around the names" in caplog.text


def test_a_header_without_blanks_leaves_values_as_they_are(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "text,label\n very good, 1\n") == [
        {"text": " very good", "label": " 1"}
    ]


@pytest.mark.parametrize("raw", ["text,text\na,b\n", "text, text \na,b\n", ",\na,b\n"])
def test_names_that_are_not_distinct_are_refused(raw: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="distinct column names in the header"):
        load_file(written(tmp_path / "a.csv", raw))


def test_a_long_text_is_no_fault(tmp_path: Path) -> None:
    raw = f"text,label\n{'w5 ' * 200_000},1\n"
    assert len(read(tmp_path / "long.csv", raw)[0]["text"]) == 600_000


# -- encodings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_mark_tells_the_encoding(encoding: str, name: str, tmp_path: Path) -> None:
    rows = {"a.csv": "text,label\ntrès bon,1\n", "a.jsonl": '{"text": "très bon", "label": "1"}\n'}
    assert read(tmp_path / name, rows[name].encode(encoding)) == [
        {"text": "très bon", "label": "1"}
    ]


@pytest.mark.parametrize(
    ("text", "encoding", "advice"),
    [
        ("text,label\ntrès bon,1\nça va,0\n", "cp1252", 'data.encoding="cp1252" is likely'),
        ("text,label\nbon,1\n", "utf-16-le", 'data.encoding="utf-16-le" is likely'),
        ("text,label\nbon,1\n", "utf-16-be", 'data.encoding="utf-16-be" is likely'),
        ("text,label\nочень хорошо,1\n", "cp1251", "data.encoding may be .*cp1251"),
        ("text,label\n非常好,1\n真的很糟糕,0\n", "gb18030", "data.encoding may be .*gb18030"),
    ],
)
def test_another_encoding_is_one_line_that_names_the_likely_one(
    text: str, encoding: str, advice: str, tmp_path: Path
) -> None:
    file = written(tmp_path / "a.csv", text.encode(encoding))
    with pytest.raises(DataError, match=advice) as raised:
        load_file(file)
    assert "data.encoding=utf-8" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert load_file(file, encoding=encoding).columns == COLUMNS


def test_one_bad_byte_in_utf8_text_is_named_as_such() -> None:
    raw = b"text,label\n" + "très bon été,1\n".encode() * 3 + b"caf\xff,0\n"
    with pytest.raises(DataError, match=r"in line 5; the rest is UTF-8: mend that line"):
        decode_text(raw, "utf-8", "a.csv")


def test_a_row_that_is_no_text_is_one_rows_fault(tmp_path: Path) -> None:
    raw = b'text,label\nvery good,1\ncaf\xe9,1\n"bad, really",0\n'
    file = written(tmp_path / "a.csv", raw)
    data = load_file(file, columns=COLUMNS, bad_rows="drop")
    kept = checked(data, RecordColumns(("text",), "label", "class", ("0", "1")), "drop")
    assert kept.records == GOOD
    assert "bytes that are no text in data.encoding" in kept.left_out[0]


# -- JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["array.json", "array.json.gz"])
def test_an_array_of_objects_is_read(name: str, tmp_path: Path) -> None:
    raw = json.dumps(GOOD, indent=1).encode()
    assert read(tmp_path / name, gzip.compress(raw) if name.endswith("gz") else raw) == GOOD


def test_lines_in_a_json_file_are_read_as_before(tmp_path: Path) -> None:
    raw = "".join(json.dumps(row) + "\n" for row in GOOD)
    assert read(tmp_path / "lines.json", raw) == GOOD


@pytest.mark.parametrize(
    "raw", ['[{"text": "a"}', "[", '[{"text": "a"},]', "[" * 100_000, '[{"text": "a"}] [']
)
def test_a_damaged_array_is_refused_whatever_the_rule(raw: str, tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", raw)
    for rule in ("refuse", "drop"):
        with pytest.raises(DataError, match=r"JSON array of objects in .*a\.json"):
            load_file(file, bad_rows=rule)  # type: ignore[arg-type]


def test_only_the_columns_that_are_used_are_required(tmp_path: Path) -> None:
    """A key that only some records have; and one that a record lacks is null, by any format."""
    raw = '{"text": "very good", "label": "1", "extra": 1}\n{"label": "0", "text": "bad, really"}\n{"label": "0"}\n'
    file = written(tmp_path / "ragged.jsonl", raw)
    data = load_file(file, columns=COLUMNS)
    assert data.records == [*GOOD, {"text": None, "label": "0"}]
    assert load_file(file).columns == ("text", "label", "extra")
    with pytest.raises(DataError, match=r"1 of 3 records .*'text': no text \(null\)"):
        checked(data, RecordColumns(("text",), "label", "class", ("0", "1")), "refuse")


# -- Parquet and folders ---------------------------------------------------------------------------


def test_parquet_is_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.table(
        {"text": ["very good", "bad, really"], "label": ["1", "0"], "more": [[1], [2, 3]]}
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    assert load_file(tmp_path / "a.parquet", columns=COLUMNS).records == GOOD
    assert load_file(tmp_path / "a.parquet").records[1]["more"] == [2, 3]
    with pytest.raises(DataError, match=r"column 'title' in .* got columns text, label, more"):
        load_file(tmp_path / "a.parquet", columns=["title"])
    raw = (tmp_path / "a.parquet").read_bytes()
    for damaged in (raw[:-9], raw[4:], b""):
        with pytest.raises(DataError, match="whole Parquet file"):
            load_file(written(tmp_path / "cut.parquet", damaged))
    with pytest.raises(DataError, match=r"readable Parquet file, got .*no\.parquet"):
        load_file(tmp_path / "no.parquet")


def test_without_pyarrow_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match="pip install pyarrow"):
        load_file(tmp_path / "a.parquet")


def test_a_folder_has_one_file_a_silo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path / "alpha.csv", "text;label\nvery good;1\n")
    written(tmp_path / "st. mary.jsonl.gz", gzip.compress(json.dumps(GOOD[1]).encode()))
    written(tmp_path / "README.md", "not data")
    with caplog.at_level(logging.WARNING):
        data = load_folder(tmp_path, silo_column="organisation", columns=(*COLUMNS, "organisation"))
    assert data.records == [
        GOOD[0] | {"organisation": "alpha"},
        GOOD[1] | {"organisation": "st. mary"},
    ]
    assert "README.md is no data file" in caplog.text
    written(tmp_path / "alpha.jsonl", json.dumps(GOOD[0]))
    with pytest.raises(DataError, match=r"got alpha\.csv and alpha\.jsonl for 'alpha'"):
        load_folder(tmp_path, silo_column="organisation", columns=COLUMNS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="one a silo, got none"):
        load_folder(tmp_path / "empty", silo_column="organisation", columns=COLUMNS)


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_value_that_cannot_be_read_is_its_rows_fault(
    nested: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    raw = [b"fine", b"caf\xe9", "f\u00fcr".encode(), b"\xff", None]
    size = np.array([0, *np.cumsum([len(value or b"") for value in raw])], dtype=np.int32)
    present = arrow.py_buffer(bytes([0b01111]))
    buffers = [present, arrow.py_buffer(size), arrow.py_buffer(b"".join(v or b"" for v in raw))]
    text = arrow.Array.from_buffers(arrow.string(), len(raw), buffers)
    if nested:
        text = arrow.StructArray.from_arrays([text], ["inner"])
    file = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": text, "label": [0, 1, 2, 3, 4]}), file)
    with pytest.raises(DataError, match=r"a\.parquet, got none in column 'text' of row 2 \("):
        load_file(file)
    found = load_file(file, bad_rows="drop")
    assert [record["label"] for record in found] == [0, 2, 4]
    texts = [record["text"]["inner"] if nested else record["text"] for record in found]
    assert texts == ["fine", "f\u00fcr", None]
    assert found.left_out == (f"2 of 5 rows of {file} are no records; the first, by line: 2, 4",)
    assert len(load_file(file, columns=["label"])) == 5, (
        "a column that is not asked for is not read"
    )


@pytest.mark.parametrize("name", ["a.xlsx", "a.zip", "a", "a.parquet.gz"])
def test_other_endings_are_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ending in \.jsonl") as raised:
        load_file(written(tmp_path / name, "x"))
    assert ("save the sheet as CSV" in str(raised.value)) == name.endswith("xlsx")


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "labels", "place"),
    [
        (True, ("false", "true"), 1),
        (False, ("False", "True"), 0),
        ("TRUE", ("false", "true"), 1),
        (True, ("0", "1"), None),
        (1.0, ("0", "1"), 1),
        ("1.0", ("0", "1"), 1),
        ("0.", ("0", "1"), 0),
        (1, ("0.0", "1.0"), 1),
        ("-1.0", ("-1", "1"), 0),
        (1, ("0", "1"), 1),
        (" 1", ("0", "1"), 1),
        ("1", ("1", "1.0"), 0),
        ("1.0", ("1", "1.0"), 1),
        ("1.00", ("1", "1.0"), None),
        (1.5, ("0", "1"), None),
        ("1e0", ("0", "1"), None),
        (float("nan"), ("nan", "1"), None),
        (float("inf"), ("inf", "1"), None),
        (None, ("None", "1"), None),
        ("Positive", ("positive", "negative"), None),
        (["1"], ("0", "1"), None),
    ],
)
def test_a_class_is_found_as_data_frames_write_it(
    value: Any, labels: tuple[str, ...], place: int | None
) -> None:
    assert class_place(value, labels) == place


def test_a_silos_own_classes_are_written_as_it_names_them(tmp_path: Path) -> None:
    """So that an experiment with other spellings of a class cannot make a silo refuse by how its data are written."""
    raw = "text;label\na;1.0\nb; 0\nc;1\nd;1.00\n"
    silo = load_silo_file(written(tmp_path / "a.csv", raw), "s", labels=("0", "1"))
    assert silo.train.column("label") == ["1", "0", "1", "1"]
    assert label_index(silo.train, "label", ["1.0", "0", "1"])[0] == [2, 1, 2, 2]


# -- what depends on a record is that record alone --------------------------------------------------

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=12)


def table(rows: list[tuple[str, str]], delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    return out.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(texts, texts), min_size=1, max_size=5),
    st.tuples(texts, texts),
    st.sampled_from(DELIMITERS),
    st.data(),
)
def test_one_record_never_changes_how_others_are_read(
    rows: list[tuple[str, str]], other: tuple[str, str], delimiter: str, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    changed = [*rows[:place], other, *rows[place + 1 :]]
    found = []
    for each in (rows, changed):
        text = table(each, delimiter)
        header = read_header(text, "t", delimiter=None, first=",", columns=COLUMNS)
        assert header is not None
        assert header.delimiter == delimiter
        found.append([row for _, row in delimited_rows(text, "t", columns=COLUMNS)])
    assert found[0] == [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    assert [row for i, row in enumerate(found[0]) if i != place] == [
        row for i, row in enumerate(found[1]) if i != place
    ]


bad_lines = st.one_of(
    st.just("[1]"),
    st.just('{"text": "cut'),
    st.just("[" * 5_000),
    st.just('{"n": ' + "1" * 5_000 + "}"),
    texts.map(lambda text: json.dumps({"label": text})),
    st.binary(min_size=1, max_size=6).map(lambda raw: raw.replace(b"\n", b"").decode("latin-1")),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=5), bad_lines, st.data())
def test_a_bad_line_never_changes_how_others_are_read(
    rows: list[str], bad: str, data: st.DataObject
) -> None:
    import tempfile

    place = data.draw(st.integers(0, len(rows)))
    lines = [json.dumps({"text": text, "label": "1"}).encode() for text in rows]
    raw = b"\n".join([*lines[:place], bad.encode("latin-1", "replace"), *lines[place:]])
    with tempfile.TemporaryDirectory() as folder:
        found = load_file(
            written(Path(folder) / "a.jsonl", raw), columns=COLUMNS, bad_rows="drop"
        ).records
    good = [{"text": text, "label": "1"} for text in rows]
    at = place
    assert found[:at] == good[:at]
    assert found[len(found) - len(good) + at :] == good[at:]
    assert len(found) - len(good) in (0, 1)  # a line that is a record is kept, for the next check


def test_rows_that_are_no_records_are_refused_or_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = 'text,label\nvery good,1\nonly one\nx,y,z\n"bad, really",0\n'
    file = written(tmp_path / "a.csv", raw)
    with pytest.raises(RowError, match=r"2 values a row .* got 1 in line 3"):
        load_file(file)
    with caplog.at_level(logging.WARNING):
        data = load_file(file, bad_rows="drop")
    assert data.records == GOOD
    assert data.left_out == (f"2 of 4 rows of {file} are no records; the first, by line: 3, 4",)
    assert data.left_out[0] in caplog.text
    with pytest.raises(DataError, match="well-formed CSV"):
        load_file(written(tmp_path / "open.csv", raw + '"open,1\n'), bad_rows="drop")
