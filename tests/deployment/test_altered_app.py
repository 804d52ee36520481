"""A server that ships other code than the silos approved, with real processes: nothing of it starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployments import Federation
from faulty_nodes import write_experiment

from client.executor.approval import approve, revoke
from fedllm.run.folder import RunFolder
from server.deployment.app_bundle import bundle, bundle_hash

pytestmark = pytest.mark.slow
SILOS = ["alpha", "beta"]


@pytest.fixture
def marker(federation: Federation, tmp_path: Path) -> Iterator[Path]:
    """One line more in the client that the server ships: it makes this file where it runs."""
    made = tmp_path / "the-altered-client-ran"
    saved = tmp_path / "app"
    shutil.copytree(federation.folder.app, saved)
    file = federation.folder.app / "client" / "app.py"
    text = file.read_text(encoding="utf-8")
    line = f"import pathlib; pathlib.Path({str(made)!r}).touch()\n"
    file.write_text(f"{text}\n{line}", encoding="utf-8")
    yield made
    shutil.rmtree(federation.folder.app)
    shutil.copytree(saved, federation.folder.app)


def test_an_altered_app_runs_on_no_node_before_it_is_approved(
    federation: Federation,
    marker: Path,
    tiny_tree: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    tree = tiny_tree(**{"server.rounds": 1, "data.silo_names": SILOS, "privacy.epsilon": 1e5})
    experiment = write_experiment(tmp_path / "experiment.toml", tree)
    federation.wait_until_online(*SILOS)
    known = set(federation.folder.runs.iterdir())
    digest = bundle_hash(bundle(federation.folder.app))

    done = federation.call("submit", str(experiment))
    assert done.returncode == 1, done.stdout + done.stderr
    for silo in SILOS:
        assert (
            f"an app bundle that the silo {silo} has approved, got the one of SHA-256 {digest}"
            in done.stdout
        )
        log = (federation.folder.node(silo) / "logs" / "executor.log").read_text(encoding="utf-8")
        assert f"refused the bundle {digest}: it is not in " in log
        assert not federation.ledger(silo).exists() or not _rows(federation, silo, known)
    assert "fedllm deploy approve" in done.stdout
    assert not marker.exists()

    lists = [federation.folder.node(silo) / "approved.json" for silo in SILOS]
    for path in lists:
        approve(path, digest)
    try:
        done = federation.call("submit", str(experiment))
        assert done.returncode == 0, done.stdout + done.stderr
        assert marker.exists(), "so the line does run where the bundle is approved"
    finally:
        for path in lists:
            revoke(path, digest)


def _rows(federation: Federation, silo: str, known: set[Path]) -> int:
    """Rows of the runs that are new, in a silo's ledger."""
    from privacy.ledger.ledger import Ledger

    runs = [RunFolder.open(p) for p in federation.folder.runs.iterdir() if p not in known]
    with Ledger(federation.ledger(silo), read_only=True) as ledger:
        return sum(len(ledger.entries(run=run.run_id)) for run in runs)
