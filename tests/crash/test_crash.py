"""The crash harness: it finds nothing, and it would find something."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> tuple[int, str]:
    """Python in a process of its own: the harness forks, which this one, with its threads, must not."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    return done.returncode, done.stdout or done.stderr


def crash(kills: int) -> dict[str, Any]:
    status, output = run("-m", "tests.crash.crash", "--kills", str(kills), "--json")
    assert status == 0, output
    found: dict[str, Any] = json.loads(output)
    assert found["violations"] == []
    assert found["kills"] == kills
    assert found["complete"]
    assert found["runs_finished"] >= 1
    assert found["values_received"] >= 18 * found["runs_finished"] / 4
    return found


def test_nothing_is_released_that_the_ledger_lacks() -> None:
    crash(5)


@pytest.mark.slow
def test_nothing_is_released_that_the_ledger_lacks_40_times() -> None:
    found = crash(40)
    assert len(found["kills_by_moment"]) == 4
    assert len(found["kills_by_case"]) == 4
    assert found["values_of_repeated_rounds"] > 0
    assert any(rows != "0" for rows in found["kills_by_rows_without_a_received_value"])


BROKEN = """
import json, sys, tempfile
from pathlib import Path
import fedllm.silo.silo_in_run
from fedllm.budget.account import SiloAccount
from tests.crash import child as crash_child
from tests.crash import crash
from simulations.in_process import LocalGrid

def late():
    "Rows are written when the replies have been received."
    waiting, spend, pull = [], SiloAccount.spend_training, LocalGrid.pull_messages
    SiloAccount.spend_training = lambda *call: waiting.append(call)
    def pull_messages(self, ids):
        while waiting:
            spend(*waiting.pop(0))
        return pull(self, ids)
    LocalGrid.pull_messages = pull_messages

def reset():
    "A resumed run begins with an empty ledger."
    class Forgetful(crash_child.RunFolder):
        @classmethod
        def open(cls, path):
            for file in Path(path).glob("ledger.sqlite*"):
                file.unlink()
            return super().open(path)
    crash_child.RunFolder = Forgetful

def reused_key():
    "A repeated round with fresh noise passes for the same release."
    fedllm.silo.silo_in_run.release_key = lambda settings, purpose, number, digest: f"{purpose}/{number}"

noise = "fresh" if sys.argv[1] == "reused_key" else "seeded"
case = f"{noise} noise by the silos"
with tempfile.TemporaryDirectory() as folder:
    tally = crash.kill_runs(60, Path(folder) / "x", seed=1, sabotage=globals()[sys.argv[1]],
                            cases={case: crash.CASES[case]}, most_violations=1)
print(json.dumps(tally.violations))
"""


@pytest.mark.parametrize(
    ("sabotage", "reported"),
    [
        ("late", "values received of"),
        pytest.param("reset", "received|reset or rewritten|gone", marks=pytest.mark.slow),
        pytest.param("reused_key", "2 values received of", marks=pytest.mark.slow),
    ],
)
def test_the_harness_has_teeth(sabotage: str, reported: str) -> None:
    """What breaks the promise on purpose, in the killed processes alone, is reported."""
    status, output = run("-c", BROKEN, sabotage)
    assert status == 0, output
    violations = json.loads(output)
    assert violations
    assert re.search(reported, violations[0]), violations
