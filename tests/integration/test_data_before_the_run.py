"""Data of a simulation: checked at all silos before anything is spent, and the same when a run goes on."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

import fedllm
from fedllm.data import silos
from fedllm.data.silos import load_federation
from fedllm.run.data_digests import DIGESTS
from fedllm.run.folder import RunFolder, RunFolderError
from simulations.cli.main import app
from simulations.runner import CHANGED_DATA, begin_data

Tree = Callable[..., dict[str, Any]]
Make = Callable[..., list[dict[str, Any]]]
NAMES = ("alpha", "beta", "gamma")


@pytest.fixture
def data(tmp_path: Path, word_records: Make) -> Path:
    """A folder with 60 rows in train.jsonl, 20 a silo."""
    rows = [row for seed, name in enumerate(NAMES) for row in word_records(20, seed, name)]
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", rows)
    write(folder / "validation.jsonl", word_records(10, 99))
    return folder


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Files are read once a process; these tests change them."""
    silos._load.cache_clear()
    yield
    silos._load.cache_clear()


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")


def change(path: Path, line: int, **values: Any) -> None:
    rows = [json.loads(text) for text in path.read_text(encoding="ascii").splitlines()]
    rows[line - 1] |= values
    write(path, rows)
    silos._load.cache_clear()


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"label": None}, "column 'label': no class (null)"),
        (
            {"label": "middling"},
            "column 'label': the class 'middling', which is not among low, high",
        ),
        ({"text": 7}, "column 'text': int in place of text"),
        ({"text": "  "}, "column 'text': blank text"),
    ],
)
def test_a_bad_row_of_any_silo_ends_the_command_at_once(
    values: dict[str, Any], fault: str, data: Path, tiny_tree: Tree, tmp_path: Path
) -> None:
    change(data / "train.jsonl", 47, **values)  # of the last silo
    experiment, run = tmp_path / "e.toml", tmp_path / "run"
    experiment.write_text(tomli_w.dumps(tiny_tree(**{"data.path": str(data)})), encoding="utf-8")
    done = CliRunner().invoke(app, ["run", str(experiment), "--run", str(run)])
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.strip().splitlines()
    assert "silo gamma: 1 of 20 records of gamma cannot be used" in line
    assert f"(1 of: {fault}); the first: {data / 'train.jsonl'} line 47." in line
    assert not run.exists()


def test_resume_checks_the_rows_again_and_notices_changed_data(
    data: Path, start_run: Callable[..., RunFolder]
) -> None:
    run = start_run("begun", **{"data.path": str(data)})
    assert begin_data(run, load_federation(run.settings())) == []
    run.set_state(status="interrupted")
    assert begin_data(run, load_federation(run.settings())) == []
    change(data / "train.jsonl", 25, text="w1 w2 w3 w4")
    with pytest.raises(
        RunFolderError, match=r"other data of beta: put them back, .* --changed-data"
    ):
        fedllm.resume(run)
    assert not run.ledger_path.exists()
    assert begin_data(run, load_federation(run.settings()), changed_data=True) == [CHANGED_DATA]
    assert begin_data(run, load_federation(run.settings())) == []  # taken up
    change(data / "train.jsonl", 25, label=None)
    with pytest.raises(ValueError, match="silo beta: 1 of 20 records"):
        fedllm.resume(run)


def test_the_digests_are_keyed_and_private(data: Path, start_run: Callable[..., RunFolder]) -> None:
    found = []
    for name in ("one", "two"):
        run = start_run(name, **{"data.path": str(data)})
        begin_data(run, load_federation(run.settings()))
        path = run.path / DIGESTS
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        found.append(json.loads(path.read_text(encoding="ascii"))["hmac-sha256"])
    assert set(found[0]) == {*NAMES, "the server's evaluation"}
    assert all(found[0][name] != found[1][name] for name in found[0]), (
        "no key, no digest to compare"
    )


def test_a_run_of_before_goes_on_without_digests(
    data: Path, start_run: Callable[..., RunFolder]
) -> None:
    run = start_run("old", **{"data.path": str(data)})
    run.set_state(status="interrupted")
    assert begin_data(run, load_federation(run.settings())) == []
    assert not (run.path / DIGESTS).exists()


def test_what_is_suspicious_is_warned_of_on_the_terminal_alone(
    data: Path, start_run: Callable[..., RunFolder], caplog: pytest.LogCaptureFixture
) -> None:
    change(data / "train.jsonl", 3, text="None")
    for line in range(4, 12):
        change(data / "train.jsonl", line, text="w1 w2", label="low")
    run = start_run("odd", **{"data.path": str(data)})
    begin_data(run, load_federation(run.settings()))
    assert "1 training records hold the text 'None' in column 'text'" in caplog.text
    assert "one of them 8 times (silo alpha)" in caplog.text
    assert not (run.path / "metrics.jsonl").exists()


def test_notes_on_the_data_are_in_the_report(
    start_run: Callable[..., RunFolder], in_process: Callable[..., str]
) -> None:
    run = start_run("noted", **{"server.rounds": 1})
    assert in_process(run, notes=[CHANGED_DATA]) == "finished"
    report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    assert CHANGED_DATA in report["warnings"]
