"""The ledger under real processes: concurrent writers, and kill -9 at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from privacy.ledger.ledger import Ledger

ROOT = Path(__file__).resolve().parents[3]

PRELUDE = """
import sys
from privacy.events import constructors as ev
from privacy.ledger.ledger import Ledger, LedgerEntry
STEP = ev.dp_sgd(0.01, 1.0, 4)
def entry(party, number):
    return LedgerEntry("run", party, "example", "train", number, f"round-{number}",
                       {"server": STEP, "outsider": STEP})
"""

WRITER = (
    PRELUDE
    + """
path, party, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Ledger(path) as ledger:
    for number in range(count):
        assert ledger.append(entry(party, number))
"""
)

# Releases (writes to stdout) only after the entry is durable, as a client does.
RELEASER = (
    PRELUDE
    + """
path, start = sys.argv[1], int(sys.argv[2])
ledger = Ledger(path)
for number in range(start, 10**6):
    ledger.append(entry("a", number))
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""
)


def start(script, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, **options)


def test_concurrent_writers_lose_nothing(tmp_path):
    path = tmp_path / "ledger.sqlite"  # created by whoever comes first
    writers = [start(WRITER, path, party, 40) for party in "abcd"]
    assert [w.wait(timeout=120) for w in writers] == [0] * 4
    with Ledger(path) as ledger:
        report = ledger.verify()
        assert report.ok, report.problems
        assert report.rows == 160
        for party in "abcd":
            rounds = [e.round for e in ledger.entries(party=party)]
            assert rounds == list(range(40))


def test_two_writers_of_the_same_entries_record_each_once(tmp_path):
    path = tmp_path / "ledger.sqlite"
    script = WRITER.replace("assert ledger.append", "ledger.append")
    writers = [start(script, path, "a", 60) for _ in range(2)]
    assert [w.wait(timeout=120) for w in writers] == [0, 0]
    with Ledger(path) as ledger:
        assert [e.round for e in ledger.entries()] == list(range(60))
        assert ledger.verify().ok


def kill_at_random_moments(path, times, seed):
    """Kill a releasing process again and again; return (the most over-count seen, released)."""
    rng = random.Random(seed)
    released = 0
    most_ahead = 0
    for _ in range(times):
        process = start(RELEASER, path, released, stdout=subprocess.PIPE, text=True)
        lines = [process.stdout.readline()]  # it runs
        time.sleep(rng.uniform(0, 0.1))  # a release is some 10 ms on a slow disk
        os.kill(process.pid, signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        lines += rest.splitlines(keepends=True)
        numbers = [int(line) for line in lines if line.endswith("\n")]
        released = max(numbers) + 1
        with Ledger(path) as ledger:
            rounds = [e.round for e in ledger.entries(party="a")]
            report = ledger.verify()
        assert report.ok, report.problems
        assert rounds == list(range(len(rounds)))
        assert len(rounds) >= released  # nothing was released that the ledger lacks
        most_ahead = max(most_ahead, len(rounds) - released)
    return most_ahead, released


def test_kill_nine_never_under_counts(tmp_path):
    ahead, released = kill_at_random_moments(tmp_path / "ledger.sqlite", 4, seed=1)
    assert ahead <= 1  # at most the event between its record and its release
    assert released > 4


@pytest.mark.slow
def test_kill_nine_200_times(tmp_path):
    ahead, released = kill_at_random_moments(tmp_path / "ledger.sqlite", 200, seed=2)
    assert ahead <= 1
    assert released > 200


def test_kill_nine_while_the_ledger_is_made(tmp_path):
    """A ledger comes into being whole: a killed creation leaves none, or a good one."""
    for attempt in range(3):
        path = tmp_path / f"{attempt}.sqlite"
        process = start(WRITER, path, "a", 3)
        deadline = time.monotonic() + 60
        while not any(tmp_path.glob(f"*{path.name}*")) and time.monotonic() < deadline:
            time.sleep(0.0005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        with Ledger(path) as ledger:
            assert ledger.verify().ok


def test_a_writer_killed_among_others_takes_nothing_with_it(tmp_path):
    """One of three writers is killed while it writes; the others' rows, and its own, are all there."""
    path = tmp_path / "ledger.sqlite"
    victim = start(RELEASER, path, 0, stdout=subprocess.PIPE, text=True)  # party "a"
    others = [start(WRITER, path, party, 60) for party in "bc"]
    lines = [victim.stdout.readline() for _ in range(10)]
    os.kill(victim.pid, signal.SIGKILL)
    lines += victim.stdout.readlines()
    victim.wait(timeout=60)
    assert [w.wait(timeout=120) for w in others] == [0, 0]
    released = 1 + max(int(line) for line in lines if line.endswith("\n"))
    with Ledger(path, read_only=True) as ledger:
        report = ledger.verify()
        assert report.ok, report.problems
        for party in "bc":
            assert [e.round for e in ledger.entries(party=party)] == list(range(60))
        assert released <= len(ledger.entries(party="a")) <= released + 1
