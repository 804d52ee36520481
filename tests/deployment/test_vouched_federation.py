"""Real processes: the report of a deployed run is guaranteed by the extracts that the nodes sign, signed and verified."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from deployments import ROOT, Federation, make_folder

from privacy.ledger.ledger import Ledger

pytestmark = pytest.mark.slow


@pytest.fixture
def fresh(tmp_path: Path, word_files: Path) -> Iterator[Federation]:
    """A federation whose ledgers are new: no seeded run is on them."""
    with Federation(make_folder(tmp_path / "fedllm", "alpha", "beta"), word_files).up() as running:
        yield running


def fedllm(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simulations.cli.main", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_the_report_is_guaranteed_signed_and_verified(
    fresh: Federation, tiny_tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """alpha sends its events, beta keeps them; each is verified by the key that is registered for it."""
    changes = {"server.rounds": 2, "data.train": "not-here.jsonl", "privacy.randomness": "os"}
    path = tmp_path / "experiment.toml"
    path.write_text(tomli_w.dumps(tiny_tree(**changes)), encoding="utf-8")
    fresh.write_silo("beta", extract="epsilon")
    done = fresh.call("submit", str(path))
    assert done.returncode == 0, done.stdout + done.stderr + fresh.log("superexec")
    (run,) = fresh.folder.runs.glob("*")
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["guarantee"]["level"] == "guaranteed", report["headline"]
    assert "On the word of the 2 silos" in report["headline"]
    assert report["problems"] == []
    rows = {row["silo"]: row for row in report["vouching"]}
    assert {name: row["events"] for name, row in rows.items()} == {"alpha": "sent", "beta": "kept"}
    for name, row in rows.items():
        with Ledger(fresh.ledger(name), read_only=True) as ledger:
            assert (row["rows"], row["hash"]) == ledger.head()
        assert (row["rows_of_run"], row["final"], row["disagreements"]) == (2, True, [])
        assert (fresh.folder.extracts / f"{name}.json").is_file(), "the head, for later runs"

    key = tmp_path / "officer.pem"
    for words in (("keygen", str(key)), ("sign", str(run), "--key", str(key))):
        assert (done := fedllm(*words)).returncode == 0, done.stderr
    done = fedllm("verify", str(run), "--public-key", str(tmp_path / "officer.pub.pem"))
    assert done.returncode == 0, done.stdout
    assert "holds  alpha vouches for 3 rows of its ledger" in done.stdout
    assert "note" not in done.stdout, "by the keys of the deployment's folder"
    done = fedllm("verify", str(run), "--ledger", str(fresh.ledger("beta")))
    assert "holds  The ledger of beta holds the 3 rows that it vouched for." in done.stdout
    (run / "extracts" / "beta.json").write_bytes((run / "extracts" / "alpha.json").read_bytes())
    done = fedllm("verify", str(run))
    assert done.returncode == 1
    assert "FAILS  FORGED EXTRACT: beta.json" in done.stdout
