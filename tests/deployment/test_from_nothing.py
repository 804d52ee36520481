"""docs/guides/deployment.md from an empty machine: three nodes in network namespaces, their report guaranteed, signed, verified."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from deployments import ROOT, needs_nginx, wait_for
from hosts import SERVER, Hosts, make_hosts

from simulations.benchmarks.local_federation import processes_of

pytestmark = pytest.mark.slow
SILOS = ["alpha", "beta", "gamma"]
SCRIPT = Path(__file__).with_name("from_nothing.sh")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    needs_nginx()
    found = make_hosts(*SILOS)
    yield found
    found.close()


def build_wheel(folder: Path, source: Path) -> None:
    """``make wheel``, of a copy of the packages: the wheel and the sums."""
    source.mkdir()
    for name in ("client", "fedllm", "privacy", "server", "simulations"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(folder), str(source)], check=True)
    shutil.copy(ROOT / "constraints.txt", folder)
    files = [*folder.glob("*.whl"), folder / "constraints.txt"]
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def test_three_nodes_from_nothing(
    hosts: Hosts,
    tiny_tree: Callable[..., dict[str, Any]],
    encoder_folder: Path,
    word_files: Path,
    tmp_path: Path,
) -> None:
    work = tmp_path / "work"
    (work / "data").mkdir(parents=True)
    build_wheel(work / "dist", tmp_path / "source")
    shutil.copytree(encoder_folder, work / "model")
    rows = (word_files / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for silo in SILOS:
        own = [row for row in rows if json.loads(row)["organisation"] == silo]
        (work / "data" / f"{silo}.jsonl").write_text("\n".join(own) + "\n", encoding="utf-8")
    changes = {"server.rounds": 2, "data.train": "not-here.jsonl", "privacy.randomness": "os"}
    tree = tiny_tree(**changes, **{"model.name": str(work / "model")})
    (work / "experiment.toml").write_text(tomli_w.dumps(tree), encoding="utf-8")
    dependencies = sysconfig.get_path("purelib")
    done = subprocess.run(
        [str(SCRIPT), str(work), hosts.address(SERVER), hosts.space(""), dependencies],
        capture_output=True,
        text=True,
        timeout=3000,
    )
    said = done.stdout + done.stderr
    wait_for(lambda: not processes_of(work), "every program to end with the script", 120)
    assert done.returncode == 0, said
    assert done.stdout.rstrip().endswith("== done")
    (run,) = (work / "server" / "fedllm" / "runs").iterdir()
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["guarantee"]["level"] == "guaranteed", report["headline"]
    assert [row["silo"] for row in report["vouching"] if row["vouches"]] == SILOS
    assert said.count("holds  The extracts are the files that were signed.") == 2
    assert "holds  The ledger of beta holds the 3 rows that it vouched for." in said
    assert "FAILS" not in said
