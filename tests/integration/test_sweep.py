"""``fedllm sweep`` over real runs of tiny models, in worker processes."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from scipy import stats
from typer.testing import CliRunner

from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder, RunFolderError, read_settings
from fedllm.run.lock import sole_use
from simulations.cli.main import app
from simulations.sweep.execute import Outcome, execute, is_done
from simulations.sweep.plan import Sweep, Trial, load_sweep
from simulations.sweep.report import HTML, JSON, MARKDOWN, write_results
from simulations.sweep.results import collect

ARMS: dict[str, Any] = {
    "plain": {},
    "averaged": {"server": {"averaging": 0.5}},
    "counted": {"evaluation": {"clients": "raw", "clients_holdout": 0.2}},
    "free": {"privacy": {"mode": "none"}},
}


class Seen:
    """Remembers what the view is told."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int]] = []
        self.rounds = 0
        self.ends: list[tuple[str, str, str]] = []

    def started(self, trial: Trial, first_round: int) -> None:
        self.begun.append((trial.title, first_round))

    def moved(self, trial: Trial, done: int) -> None:
        self.rounds += 1

    def ended(self, trial: Trial, status: str, message: str) -> None:
        self.ends.append((trial.title, status, message))


@pytest.fixture(scope="module")
def write(
    tiny_tree: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``write(arms, rounds=3, **top)``: a sweep's file with its own folder beside it."""

    def make(arms: dict[str, Any], rounds: int = 3, file: Path | None = None, **top: Any) -> Path:
        file = file or tmp_path_factory.mktemp("sweep") / "sweep.toml"
        base = tiny_tree(**{"server.rounds": rounds, "evaluation.every": 2})
        base["privacy"].pop("noise_multiplier")
        tree = {
            "name": "tiny",
            "folder": str(file.parent / "out"),
            "base": base,
            "seeds": [1, 2],
            "arms": arms,
        }
        file.write_text(tomli_w.dumps(tree | top), encoding="utf-8")
        return file

    return make


def run(sweep: Sweep, workers: int = 2) -> tuple[Outcome, Seen]:
    sweep.runs_folder.mkdir(parents=True, exist_ok=True)
    seen = Seen()
    outcome = execute(
        sweep, seen, workers=workers, stop=threading.Event(), give_up=threading.Event()
    )
    return outcome, seen


def command(file: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "simulations.cli.main", "sweep", str(file), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def model_of(sweep: Sweep, trial: Trial) -> dict[str, torch.Tensor]:
    checkpoint = latest_checkpoint(RunFolder.open(sweep.run_path(trial)).checkpoints_path)
    assert checkpoint is not None
    return dict(checkpoint.params)


def rows_of(sweep: Sweep, trial: Trial) -> list[Any]:
    from privacy.ledger.ledger import Ledger

    with Ledger(RunFolder.open(sweep.run_path(trial)).ledger_path, read_only=True) as ledger:
        return [(e.party, e.purpose, e.round) for e in ledger.entries()]


@pytest.fixture(scope="module")
def done(write: Callable[..., Path]) -> tuple[Path, Sweep, dict[str, Any], Seen]:
    """A sweep that was run: file, plan, results, and what its view saw."""
    top = {"epsilon": [3.0, 8.0], "baseline": "plain", "reference": "free"}
    file = write(ARMS, **top)
    sweep = load_sweep(file)
    outcome, seen = run(sweep)
    assert outcome.failed == {}
    assert len(outcome.finished) == len(sweep.trials) == 14  # free once for both epsilons
    content = collect(sweep)
    write_results(sweep, content)
    return file, sweep, content, seen


def test_every_cell_is_a_run_with_its_own_ledger_and_report(done: Any) -> None:
    _, sweep, content, seen = done
    assert seen.rounds == 14 * 3
    assert {status for _, status, _ in seen.ends} == {"finished"}
    for trial, found in zip(sweep.trials, content["trials"], strict=True):
        folder = RunFolder.open(sweep.folder / found["run"])
        assert read_settings(folder.path) == trial.settings
        report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
        assert report["ledger"]["ok"]
        assert found["guarantee"]["sentence"] == report["headline"]
        last = [m for m in folder.metrics() if m["kind"] == "evaluation" and m["where"] == "server"]
        assert found["metrics"]["accuracy"] == last[-1]["accuracy"]
        answers = folder.read_json("cell.json")["answers"]
        right = sum(ok for _, ok in answers) / len(answers)
        assert right == pytest.approx(last[-1]["accuracy"])
        assert folder.read_json("cell.json")["processor_seconds_a_round"] > 0


def test_the_table_has_the_numbers_that_scipy_gives(done: Any) -> None:
    _, sweep, content, _ = done
    scores: dict[tuple[str, float | None], dict[int, float]] = {}
    for trial in sweep.trials:
        metrics = RunFolder.open(sweep.run_path(trial)).metrics()
        last = [m for m in metrics if m["kind"] == "evaluation" and m["where"] == "server"][-1]
        scores.setdefault((trial.arm, trial.epsilon), {})[trial.seed] = last["accuracy"]
    assert len(content["table"]) == 2 * len(ARMS)
    for row in content["table"]:
        epsilon = None if row["arm"] == "free" else row["epsilon"]
        mine, base = scores[row["arm"], epsilon], scores["plain", row["epsilon"]]
        values = [mine[seed] for seed in (1, 2)]
        assert row["values"] == values
        assert row["summary"]["mean"] == pytest.approx(sum(values) / 2)
        assert row["summary"]["spread"] == pytest.approx(statistics.stdev(values))
        if row["arm"] == "plain":
            assert row["over_seeds"] is None
            continue
        pairs = [mine[seed] - base[seed] for seed in (1, 2)]
        assert row["over_seeds"]["n"] == 2
        assert row["over_seeds"]["difference"] == pytest.approx(sum(pairs) / 2)
        expected = stats.ttest_rel(values, [base[seed] for seed in (1, 2)]).pvalue
        p = row["over_seeds"]["p"]
        assert p is None if pairs[0] == pairs[1] else p == pytest.approx(expected)
        assert row["over_examples"]["n"] > 30
        gap = sum(scores["free", None].values()) / 2 - sum(base.values()) / 2
        if row["arm"] != "free" and gap:
            assert row["gap_closed"] == pytest.approx(sum(pairs) / 2 / gap)


def test_an_arm_without_a_guarantee_is_marked(done: Any) -> None:
    _, sweep, content, _ = done
    marks = {row["arm"]: row["guarantee"] for row in content["table"] if row["epsilon"] == 3.0}
    assert marks["plain"]["level"] == "conditional"
    assert marks["plain"]["epsilon"] <= 3.0
    assert marks["counted"]["epsilon"] == float("inf")
    text = (sweep.folder / MARKDOWN).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| counted")]
    assert len(lines) == 2
    assert all("**NO GUARANTEE**" in line for line in lines)
    assert not [x for x in text.splitlines() if x.startswith("| plain") and "NO GUARANTEE" in x]
    page = (sweep.folder / HTML).read_text(encoding="utf-8")
    assert "counted: NO GUARANTEE, epsilon is infinite" in page
    for word in ("delta = 1e-05", "unit example", "zero-out", "against the server"):
        assert word in page
        assert word in text
    assert json.loads((sweep.folder / JSON).read_text(encoding="utf-8"))["done"] == 14


def test_what_is_done_is_kept_and_a_changed_arm_runs_again(
    done: Any, write: Callable[..., Path]
) -> None:
    file, sweep, _, _ = done
    again, seen = run(load_sweep(file))
    assert len(again.kept) == 14
    assert seen.begun == []
    arms = ARMS | {"averaged": {"server": {"averaging": 0.25}}}
    write(arms, file=file, epsilon=[3.0], baseline="plain", reference="free")
    changed = load_sweep(file)
    todo = [trial for trial in changed.trials if not is_done(changed, trial)]
    assert {trial.arm for trial in todo} == {"averaged"}
    outcome, seen = run(changed)
    assert sorted(trial.title for trial in outcome.finished) == sorted(c.title for c in todo)
    assert len(outcome.kept) == 6
    old = [trial for trial in sweep.trials if trial.arm == "averaged"]
    assert all(sweep.run_path(trial).exists() for trial in old), "no ledger is thrown away"


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_models(done: Any, write: Callable[..., Path]) -> None:
    """kill -9 to the sweep: its worker ends with it, and the resumed run has the same bits and rows."""
    arms = {"plain": {}}
    file = write(arms, rounds=3, epsilon=[3.0])
    sweep = load_sweep(file)
    process = command(file, "--workers", "1")
    first = sweep.trials[0]
    path = sweep.run_path(first)
    wait_for(lambda: (path / "state.json").exists() and RunFolder.open(path).state()["round"] >= 1)
    process.kill()
    process.wait()

    def free() -> bool:
        """The worker holds the run's lock as long as it lives."""
        try:
            with sole_use(path):
                return True
        except RunFolderError:
            return False

    wait_for(free, 60.0)
    outcome, _ = run(sweep, workers=1)
    assert outcome.failed == {}
    assert len(outcome.finished) + len(outcome.kept) == 2
    _, reference, _, _ = done
    for trial in sweep.trials:
        same = next(
            c for c in reference.trials if (c.arm, c.epsilon, c.seed) == ("plain", 3.0, trial.seed)
        )
        ours, theirs = model_of(sweep, trial), model_of(reference, same)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert sorted(rows_of(sweep, trial)) == sorted(rows_of(reference, same))


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_a_failed_cell_stops_no_other(
    write: Callable[..., Path],
) -> None:
    arms = {"plain": {}, "broken": {"prefix": {"layers": [7]}}, "averaged": ARMS["averaged"]}
    file = write(arms, rounds=4, baseline="plain")
    sweep = load_sweep(file)
    process = command(file, "--workers", "1")
    path = sweep.run_path(sweep.trials[0])
    wait_for(lambda: (path / "state.json").exists() and RunFolder.open(path).state()["round"] >= 1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130, output
    assert "resumes it" in output
    assert RunFolder.open(path).state()["status"] in ("interrupted", "finished")
    assert (sweep.folder / JSON).exists()
    process = command(file)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert "failed: broken, epsilon 50, seed 1" in output
    assert "prefix.layers" in output
    content = json.loads((sweep.folder / JSON).read_text(encoding="utf-8"))
    assert {c["arm"]: c["done"] for c in content["trials"]} == {
        "plain": True,
        "broken": False,
        "averaged": True,
    }
    assert "broken, epsilon 50, seed 1: failed" in (sweep.folder / MARKDOWN).read_text("utf-8")


def test_two_sweeps_of_one_folder_do_not_run_at_once(write: Callable[..., Path]) -> None:
    from simulations.sweep.locks import locked

    file = write({"plain": {}})
    sweep = load_sweep(file)
    sweep.runs_folder.mkdir(parents=True)
    with locked(sweep.folder / ".sweep-lock"):
        process = command(file)
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "Another process is at work" in output
    assert os.listdir(sweep.runs_folder) == []


def test_a_dry_run_starts_no_process_and_writes_nothing(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*words: Any, **options: Any) -> None:
        raise AssertionError(f"a dry run started {words}")

    monkeypatch.setattr("subprocess.Popen", started)
    file = write({"plain": {}, "averaged": {"server": {"averaging": 0.5}}})
    before = sorted(file.parent.rglob("*"))
    found = CliRunner().invoke(app, ["sweep", str(file), "--dry-run"], prog_name="fedllm")
    assert found.exit_code == 0, found.output
    assert "4 runs, 0 of them done" in found.stdout
    assert sorted(file.parent.rglob("*")) == before


@pytest.mark.slow
def test_a_dry_run_runs_nothing(write: Callable[..., Path]) -> None:
    file = write({"plain": {}, "free": {"privacy": {"mode": "none"}}}, epsilon=[3.0, 8.0])
    process = subprocess.run(
        [sys.executable, "-m", "simulations.cli.main", "sweep", str(file), "--dry-run", "--json"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert len(found["trials"]) == 6
    assert all(trial["rounds_left"] == trial["rounds"] == 3 for trial in found["trials"])
    assert not Path(found["folder"]).exists()
