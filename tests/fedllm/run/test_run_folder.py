from __future__ import annotations

import json
import math
import multiprocessing
import os
from pathlib import Path

import pytest

from fedllm.run.environment import describe, git_revision
from fedllm.run.folder import RunFolder, RunFolderError
from fedllm.settings.experiment import Settings
from fedllm.settings.io import parse_settings


def settings(tmp_path: Path, **sections: dict) -> Settings:
    return parse_settings({"name": "try", "output": {"folder": str(tmp_path / "runs")}, **sections})


def _create(tree: dict) -> tuple[str, str]:
    run = RunFolder.create(parse_settings(tree))
    return str(run.path), run.run_id


def test_two_runs_in_one_second_have_their_own_folders_and_ids(tmp_path: Path) -> None:
    tree = {"name": "try", "output": {"folder": str(tmp_path / "runs")}}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        made = pool.map(_create, [tree] * 8)
    assert len({path for path, _ in made}) == len({run_id for _, run_id in made}) == 8
    for path, run_id in made:
        assert Path(path).name.startswith("try-20")
        assert RunFolder.open(path).run_id == run_id


def test_settings_survive(tmp_path: Path) -> None:
    given = settings(
        tmp_path,
        client={"batch_size": 7, "sampling_rate": 0.25},
        evaluation={"max_examples": "none"},
        prefix={"layers": [0, -1]},
    )
    run = RunFolder.create(given)
    assert run.settings() == given
    assert RunFolder.open(run.path).settings() == given


def test_ledger_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(settings(tmp_path))
    assert run.ledger_path == run.path / "ledger.sqlite"
    monkeypatch.setenv("LEDGERS", str(tmp_path / "shared"))
    shared = RunFolder.create(settings(tmp_path, privacy={"ledger": "$LEDGERS/a.sqlite"}))
    monkeypatch.delenv("LEDGERS")
    assert RunFolder.open(shared.path).ledger_path == tmp_path / "shared" / "a.sqlite"
    monkeypatch.chdir(tmp_path)
    relative = RunFolder.create(settings(tmp_path, privacy={"ledger": "b.sqlite"}))
    monkeypatch.chdir("/")
    assert RunFolder.open(relative.path).ledger_path == tmp_path / "b.sqlite"


def test_a_folder_in_use_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("x")
    with pytest.raises(RunFolderError, match="empty or new folder"):
        RunFolder.create(settings(tmp_path), tmp_path / "used")
    assert os.listdir(tmp_path / "used") == ["thesis.txt"]
    with pytest.raises(RunFolderError, match="got the file"):
        RunFolder.create(settings(tmp_path), tmp_path / "used" / "thesis.txt")
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(settings(tmp_path), tmp_path / "empty").path == tmp_path / "empty"


def test_open_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="found no folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"found no settings\.toml"):
        RunFolder.open(tmp_path)
    run = RunFolder.create(settings(tmp_path))
    state = (run.path / "state.json").read_text()
    (run.path / "state.json").write_text(state[:20])
    with pytest.raises(RunFolderError, match=r"Expected JSON in .*state\.json"):
        RunFolder.open(run.path)
    (run.path / "state.json").write_text("{}")
    with pytest.raises(RunFolderError, match="run_id=None"):
        RunFolder.open(run.path)
    (run.path / "state.json").write_text(state)
    (run.path / "settings.toml").write_text("name = 1\nnmae = 2")
    with pytest.raises(RunFolderError, match="did you mean name"):
        RunFolder.open(run.path)


def test_state(tmp_path: Path) -> None:
    run = RunFolder.create(settings(tmp_path, server={"rounds": 9}))
    assert run.state()["status"] == "created"
    assert (run.state()["round"], run.state()["rounds"]) == (0, 9)
    run.set_state(status="running", round=3, message="so far, so good")
    again = RunFolder.open(run.path).state()
    assert (again["status"], again["round"], again["message"]) == ("running", 3, "so far, so good")
    with pytest.raises(RunFolderError, match="got 'done'"):
        run.set_state(status="done")
    with pytest.raises(RunFolderError, match="run_id"):
        run.set_state(run_id="other")


def test_metrics_come_back(tmp_path: Path) -> None:
    run = RunFolder.create(settings(tmp_path))
    assert run.metrics() == []
    run.append_metrics({"kind": "silo", "round": 1, "silo": "Infinity", "epsilon": math.inf})
    run.append_metrics({"kind": "evaluation", "round": 1, "loss": math.nan, "note": "é\n\u2028"})
    for line in (run.path / "metrics.jsonl").read_text().split("\n")[:-1]:
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    first, second = RunFolder.open(run.path).metrics()
    assert first["epsilon"] == math.inf
    assert first["silo"] == "Infinity"
    assert math.isnan(second["loss"])
    assert second["note"] == "é\n\u2028"
    assert first["time"].endswith("+00:00")
    for bad in (
        {"round": 1},
        {"kind": "x"},
        {"kind": "x", "round": True},
        {"kind": "", "round": 1},
    ):
        with pytest.raises(RunFolderError):
            run.append_metrics(bad)
    with pytest.raises(RunFolderError, match="plain values"):
        run.append_metrics({"kind": "x", "round": 1, "value": object()})
    assert len(run.metrics()) == 2


@pytest.mark.parametrize(
    "torn", ['{"kind":"round","rou', '{"kind":"round","round":3}', '{"a":"\xc3']
)
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    run = RunFolder.create(settings(tmp_path))
    run.append_metrics({"kind": "round", "round": 1})
    with open(run.path / "metrics.jsonl", "ab") as stream:
        stream.write(torn.encode("latin-1"))
    again = RunFolder.open(run.path)
    assert [r["round"] for r in again.metrics()] == [1]
    again.append_metrics({"kind": "round", "round": 2})
    assert [r["round"] for r in RunFolder.open(run.path).metrics()] == [1, 2]


def test_a_damaged_line_warns_and_the_rest_is_read(tmp_path: Path) -> None:
    run = RunFolder.create(settings(tmp_path))
    run.append_metrics({"kind": "round", "round": 1})
    with open(run.path / "metrics.jsonl", "ab") as stream:
        stream.write(b"\0\0\0\n[1]\n")
    run.append_metrics({"kind": "round", "round": 2})
    with pytest.warns(UserWarning, match="is damaged") as warned:
        assert [r["round"] for r in run.metrics()] == [1, 2]
    assert ["line 2" in str(w.message) for w in warned] == [True, False]
    assert len(run.read_metrics()[1]) == 2


def test_truncate_metrics(tmp_path: Path) -> None:
    run = RunFolder.create(settings(tmp_path))
    assert run.truncate_metrics(0) == 0
    for round_ in (1, 2, 2, 3):
        run.append_metrics({"kind": "round", "round": round_, "epsilon": math.inf})
    assert run.truncate_metrics(2) == 1
    run.append_metrics({"kind": "round", "round": 3})
    assert [r["round"] for r in RunFolder.open(run.path).metrics()] == [1, 2, 2, 3]
    assert run.metrics()[0]["epsilon"] == math.inf


def test_json_files(tmp_path: Path) -> None:
    run = RunFolder.create(settings(tmp_path))
    assert run.read_json("silos.json", {}) == {}
    run.write_json("silos.json", {"ä": {"examples": None}})
    assert run.read_json("silos.json") == {"ä": {"examples": None}}
    (run.path / "silos.json").write_text('{"a"')
    with pytest.raises(RunFolderError, match=r"silos\.json"):
        run.read_json("silos.json")
    for name in ("../x.json", "a/b.json", "", ".hidden"):
        with pytest.raises(RunFolderError):
            run.write_json(name, {})
    assert not list(run.path.glob(".*"))


def test_silo_logs_stay_in_their_folder(tmp_path: Path) -> None:
    run = RunFolder.create(settings(tmp_path))
    for name in ("US Airways", "../../etc/passwd", "..", "a/b", ""):
        assert run.silo_log_path(name).parent == run.path / "silo-logs"


def test_environment_is_plain(tmp_path: Path) -> None:
    found = json.loads(json.dumps(describe()))
    assert found["packages"]["torch"]
    assert found["cores"] >= 1
    assert git_revision(tmp_path) is None
