"""The report of runs of which something is missing, damaged, unfinished or still going on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from report_runs import NOISE, ROUNDS, SILOS, Page, enter, epsilon, finished, new_run, trained
from typer.testing import CliRunner

from fedllm.report import build, write_report
from fedllm.report.guarantee import shown
from fedllm.report.schema import SCHEMA_ID, json_schema
from fedllm.run.folder import RunFolder, RunFolderError
from privacy.events.constructors import dp_sgd, no_guarantee
from privacy.ledger.ledger import Adoption, Ledger, adopt_ledger
from simulations.cli.main import app

REPORT = {"report.html", "report.json"}
COST = {dp_sgd(SILOS["B"], NOISE, 1): ROUNDS}


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the report's own."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in REPORT
    }


def report(run: RunFolder) -> tuple[dict[str, object], list[str]]:
    """report.json as read back, checked against the schema; and the page's words."""
    before = contents(run.path)
    path = write_report(run.path)
    assert contents(run.path) == before, "the report changed the run folder"
    found = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(json_schema()).validate(found)
    words = Page(path.read_text(encoding="utf-8")).words
    assert words[0] == found["headline"]
    for problem in [*found["problems"], *found["notes"]]:
        said = " ".join(problem.split())
        assert words.index(said) < words.index("Privacy report: " + found["run"]["name"])
    return found, words


def first_line(run: RunFolder) -> str:
    return str(report(run)[0]["headline"])


def command(run: RunFolder) -> tuple[int, str]:
    """Exit status and stderr of ``fedllm report``."""
    done = CliRunner().invoke(app, ["report", str(run.path)])
    assert done.stdout.strip() == str(run.path / "report.html")
    return done.exit_code, done.stderr


def rewrite(name: str, text: str) -> Callable[[RunFolder], None]:
    return lambda run: (run.path / name).write_text(text) and None


def remove(name: str) -> Callable[[RunFolder], None]:
    return lambda run: (run.path / name).unlink()


def test_the_schema_is_one_and_the_command_prints_it() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == SCHEMA_ID
    done = CliRunner().invoke(app, ["report", "--schema"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == schema


def test_the_schema_refuses_what_is_no_report(tmp_path: Path) -> None:
    found, _ = report(finished(new_run(tmp_path)))
    checker = jsonschema.Draft202012Validator(json_schema())
    assert found["schema"] == SCHEMA_ID
    for change in (
        {"version": 1},
        {"guarantee": {**found["guarantee"], "level": "good"}},  # type: ignore[dict-item]
        {"silos": [{}]},
        {"more": 1},
    ):
        assert not checker.is_valid({**found, **change})
    assert not checker.is_valid({k: v for k, v in found.items() if k != "ledger"})


def test_a_whole_run_has_nothing_to_complain_of(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path))
    found, words = report(run)
    assert found["problems"] == found["notes"] == []
    assert "Missing or damaged" not in " ".join(words)
    assert command(run) == (0, "")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("metrics.jsonl"), "metrics.jsonl is missing"),
        (rewrite("metrics.jsonl", "\x00\x01 nonsense\n{}\n[1]\n"), "metrics.jsonl: line 1"),
        (remove("silos.json"), "silos.json is missing"),
        (rewrite("silos.json", '{"A": '), "silos.json is damaged"),
        (rewrite("silos.json", "[1, 2]"), "silos.json is damaged"),
        (remove("environment.json"), "environment.json is missing"),
        (rewrite("environment.json", "{}"), ""),
        (remove("state.json"), "state.json is missing"),
        (rewrite("state.json", "{"), "state.json is damaged"),
        (rewrite("state.json", '{"format": 1, "status": "finished"}'), "state.json is damaged"),
    ],
)
def test_the_guarantee_stands_without_files_it_does_not_come_from(
    tmp_path: Path, damage: Callable[[RunFolder], None], said: str
) -> None:
    run = finished(new_run(tmp_path))
    damage(run)
    found, _ = report(run)
    assert str(found["headline"]).startswith(f"Guaranteed: epsilon = {shown(epsilon(COST))} ")
    assert said in " ".join(found["problems"])  # type: ignore[arg-type]
    status, stderr = command(run)
    if said:
        assert (status, stderr.count("\n")) == (1, len(found["problems"]))  # type: ignore[arg-type]
        assert f"fedllm: missing or damaged: {said}" in stderr
    else:
        assert status == 0


def test_the_model_is_lost_and_the_guarantee_is_not(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path))
    for file in run.checkpoints_path.rglob("*.safetensors"):
        file.write_bytes(b"")
    found, _ = report(run)
    assert "no checkpoint is whole" in " ".join(found["problems"])  # type: ignore[arg-type]
    assert found["guarantee"]["level"] == "guaranteed"  # type: ignore[index]


@pytest.mark.parametrize("damage", [remove("settings.toml"), rewrite("settings.toml", "seed = [")])
def test_without_settings_no_epsilon_is_guaranteed(
    tmp_path: Path, damage: Callable[[RunFolder], None]
) -> None:
    run = finished(new_run(tmp_path))
    damage(run)
    found, words = report(run)
    assert words[0].startswith("NO GUARANTEE: no epsilon can be stated.")
    assert "settings cannot be read" in words[0]
    guarantee = found["guarantee"]
    assert isinstance(guarantee, dict)
    assert (guarantee["level"], guarantee["epsilon"]) == ("unknown", "Infinity")
    # What the ledger's rows cost is reported, and said to be no guarantee.
    assert "Not a guarantee:" in words
    assert shown(epsilon(COST)) in words
    assert found["settings"] is None
    status, stderr = command(run)
    assert status == 1
    assert "settings.toml" in stderr


def lose(run: RunFolder) -> None:
    run.ledger_path.unlink()


def overwrite(run: RunFolder) -> None:
    run.ledger_path.write_bytes(b"no database" * 500)


def cut(run: RunFolder) -> None:
    data = run.ledger_path.read_bytes()
    run.ledger_path.write_bytes(data[: len(data) // 2])


def garble(run: RunFolder) -> None:
    data = bytearray(run.ledger_path.read_bytes())
    data[4096 : len(data)] = os.urandom(len(data) - 4096)
    run.ledger_path.write_bytes(data)


@pytest.mark.parametrize("damage", [lose, overwrite, cut, garble])
def test_without_its_ledger_no_epsilon_is_stated(
    tmp_path: Path, damage: Callable[[RunFolder], None]
) -> None:
    run = finished(new_run(tmp_path))
    damage(run)
    found, words = report(run)
    assert words[0].startswith("NO GUARANTEE: ")
    assert "ledger" in words[0]
    assert found["guarantee"]["epsilon"] == "Infinity"  # type: ignore[index]
    for silo in found["silos"]:  # type: ignore[attr-defined]
        for stated in silo["adversaries"].values():
            assert stated["headline"]["epsilon"] == "Infinity"
            assert all(figure["epsilon"] == "Infinity" for figure in stated["figures"])
    assert found["privacy_curves"] is None
    assert found["ledger"]["ok"] is False  # type: ignore[index]
    assert found["training"]["final"]["server"]["accuracy"] > 0  # type: ignore[index]
    status, stderr = command(run)
    assert status == 1
    assert "ledger.sqlite" in stderr


def test_an_edited_ledger_states_no_epsilon_for_any_silo(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path))
    with sqlite3.connect(run.ledger_path) as database:
        (trigger,) = database.execute(
            "SELECT sql FROM sqlite_schema WHERE name = 'entries_keep_content'"
        ).fetchone()
        database.execute("DROP TRIGGER entries_keep_content")
        database.execute("UPDATE entries SET views = replace(views, '1.0', '9.0') WHERE id = 2")
        database.execute(trigger)
    database.close()
    found = build(run.path)
    assert found["guarantee"]["level"] == "none"
    assert all(
        figure["epsilon"] == math.inf
        for silo in found["silos"]
        for stated in silo["adversaries"].values()
        for figure in stated["figures"]
    )
    assert found["privacy_curves"] is None
    assert found["epsilon_by_round"]["silos"] == {}


def test_without_metrics_a_ledger_behind_the_state_is_noticed(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path))
    run.set_state(round=ROUNDS + 1)
    (run.path / "metrics.jsonl").unlink()
    assert f"in round {ROUNDS + 1}: something was released without a record" in first_line(run)


def test_a_shared_ledger_without_state_does_not_tell_the_run(tmp_path: Path) -> None:
    shared = {"ledger": str(tmp_path / "shared.sqlite")}
    finished(new_run(tmp_path, privacy=shared))
    run = finished(new_run(tmp_path, privacy=shared))
    (run.path / "state.json").unlink()
    found, words = report(run)
    assert words[0].startswith("NO GUARANTEE: no epsilon can be stated.")
    assert "the ledger holds several runs" in words[0]
    assert found["run"]["run_id"] is None  # type: ignore[index]


def test_everything_but_the_ledger_is_gone(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path))
    for file in run.path.iterdir():
        if file.is_file() and not file.name.startswith("ledger"):
            file.unlink()
    found, words = report(run)
    assert words[0].startswith("NO GUARANTEE: no epsilon can be stated.")
    assert {silo["silo"] for silo in found["silos"]} == set(SILOS)  # type: ignore[attr-defined]
    assert len(found["problems"]) >= 5  # type: ignore[arg-type]


def test_no_run_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("no run")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "letter.txt"):
        with pytest.raises(RunFolderError, match="Expected a run folder"):
            write_report(path)
        done = CliRunner().invoke(app, ["report", str(path)])
        assert done.exit_code == 2
        assert done.stderr.startswith("fedllm: Expected a run folder")
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_a_run_interrupted_in_a_round_counts_what_it_may_have_released(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    enter(run, "B", ROUNDS + 1, dp_sgd(SILOS["B"], NOISE, 1))
    run.set_state(status="interrupted")
    found, _ = report(run)
    notes = " ".join(found["notes"])  # type: ignore[arg-type]
    assert f"interrupted after {ROUNDS} of {ROUNDS} rounds" in notes
    assert f"Round {ROUNDS + 1} is in the ledger and was not finished" in notes
    expected = epsilon({dp_sgd(SILOS["B"], NOISE, 1): ROUNDS + 1})
    assert found["guarantee"]["epsilon"] == pytest.approx(expected)  # type: ignore[index]


@pytest.mark.parametrize(
    ("status", "said"),
    [("created", "has not begun"), ("running", "under way"), ("failed", "failed after 0 of 3")],
)
def test_a_run_that_is_not_over_is_said_to_be(tmp_path: Path, status: str, said: str) -> None:
    run = new_run(tmp_path)
    run.set_state(status=status)
    if status != "created":
        Ledger(run.ledger_path).close()
        run.append_metrics({"kind": "start", "round": 0})
    found, words = report(run)
    assert said in " ".join(found["notes"])  # type: ignore[arg-type]
    assert words[0].startswith("NOTHING RELEASED YET")
    if status == "created":
        assert found["problems"] == []
        assert command(run)[0] == 0


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {support!r})
from report_runs import *
run = RunFolder.open(sys.argv[1])
print("ready", flush=True)
with Ledger(run.ledger_path) as ledger:
    for round_ in range(1, 10_000):
        event = dp_sgd(0.02, NOISE, 1)
        views = {{"server": event, "outsider": event}}
        details = {{"relation": "zero-out", "randomness": "os"}}
        unit = Unit("example")
        entry = (run.run_id, "A", unit, "train", round_, f"train/{{round_}}", views, details)
        ledger.append(LedgerEntry(*entry))
        finish_round(run, round_, 1)
"""


def test_a_report_while_the_run_goes_on(tmp_path: Path) -> None:
    """Another process spends all the time: every report is one of a moment, and of a whole chain."""
    run = new_run(tmp_path, server={"rounds": 10_000})
    run.set_state(status="running")
    support = str(Path(__file__).resolve().parents[2] / "support")
    root = str(Path(__file__).resolve().parents[3])
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER.format(support=support), str(run.path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        seen = []
        while len(seen) < 4:
            found = build(run.path)
            if not found["ledger"]["rows"]:
                continue
            assert found["ledger"]["problems"] == []
            assert found["ledger"]["rows"] == found["ledger"]["last_row"]
            assert found["guarantee"]["level"] == "guaranteed", found["headline"]
            rows = found["silos"][0]["rows"]
            expected = epsilon({dp_sgd(0.02, NOISE, 1): rows})
            assert found["guarantee"]["epsilon"] == pytest.approx(expected, rel=1e-9)
            assert "under way" in " ".join(found["notes"])
            seen.append(rows)
    finally:
        writer.kill()
        writer.wait()
    assert seen == sorted(seen)
    assert seen[0] < seen[-1], "the run did not go on between two reports"


def test_seeded_rows_are_noticed_without_settings(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path, privacy={"randomness": "seeded"}), randomness="seeded")
    (run.path / "settings.toml").unlink()
    found = build(run.path)
    assert found["guarantee"]["level"] == "unknown"
    assert found["guarantee"]["epsilon"] == math.inf


def test_records_of_the_wrong_kind_do_not_stop_the_report(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path))
    with open(run.path / "metrics.jsonl", "a") as stream:
        for record in (
            {"kind": "round", "round": 2, "replied": "two", "failed": 5, "left": ["x"]},
            {"kind": "evaluation", "round": 3, "where": 7, "accuracy": "high", "loss": None},
            {"kind": "round", "round": True},
            {"kind": "end", "round": 3, "status": 4},
        ):
            stream.write(json.dumps(record) + "\n")
    run.write_json("silos.json", {"A": [1], "B": {"examples": 10}})
    run.write_json("environment.json", {"packages": 3, "git": "no", "memory_bytes": "all"})
    assert first_line(run).startswith("Guaranteed: epsilon")


def test_a_release_without_privacy_shows_without_settings(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path), event=no_guarantee("sent as it is"))
    (run.path / "settings.toml").unlink()
    found, words = report(run)
    assert "sent as it is" in " ".join(words)
    assert found["guarantee"]["epsilon"] == "Infinity"  # type: ignore[index]


def test_the_reader_leaves_an_unfinished_write_alone(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path))
    with Ledger(run.ledger_path):  # open for writing elsewhere
        found = build(run.path)
    assert found["guarantee"]["level"] == "guaranteed"


def test_an_adopted_ledger_is_told_wherever_the_epsilon_is(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path))
    backup = run.ledger_path.read_bytes()
    enter(run, "A", 9, dp_sgd(SILOS["A"], NOISE, 1))
    run.ledger_path.write_bytes(backup)
    found, _ = report(run)
    assert "NO GUARANTEE" in str(found["headline"])
    assert "records a row 7 that it lacks" in str(found["problems"])
    adopt_ledger(run.ledger_path, Adoption("the disk broke"))
    found, words = report(run)
    assert found["guarantee"]["level"] == "guaranteed"  # type: ignore[index]
    assert found["problems"] == []
    assert "because: the disk broke; rows up to number 7" in str(found["notes"])
    assert "Adopted ledger" in [item["title"] for item in found["assumptions"]]  # type: ignore[attr-defined]
    assert "the disk broke" in " ".join(words)


def test_a_ledger_without_its_head_is_told(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path))
    Path(f"{run.ledger_path}.head").unlink()
    found, _ = report(run)
    assert found["guarantee"]["level"] == "guaranteed"  # type: ignore[index]
    assert "Its head ledger.sqlite.head is missing" in str(found["notes"])
