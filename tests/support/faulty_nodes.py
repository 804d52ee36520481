"""A federation whose nodes can be made to fail, and what must hold whatever failed."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import tomli_w
import torch
from deployments import ROOT, Federation, wait_for
from flwr.app import Error, Message
from wire import Wire

from fedllm import messages as names
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.settings.io import load_settings
from privacy.ledger.ledger import Ledger
from server.deployment.folder import Folder
from simulations.in_process import federate

FAULTS = ROOT / "tests" / "support" / "faults"
Absent = dict[int, dict[str, str]]
"""Why a silo's update is not in a round: ``{round: {silo: reason}}``."""


class FaultyFederation(Federation):
    """A federation whose nodes obey ``tests/support/faults``.

    Args:
        folder: the deployment.
        words: folder of the tiny data.

    Attributes:
        wire: through which one of the nodes reaches the server, where a test lays one.
    """

    wire: Wire

    def __init__(self, folder: Folder, words: Path) -> None:
        super().__init__(folder, words)
        for name in folder.load().nodes:
            self.faults(name).mkdir()

    def faults(self, name: str) -> Path:
        """Folder with a node's faults."""
        return self.folder.path.parent / f"faults-{name}"

    def environment(self, name: str) -> dict[str, str]:
        """A node's processes read the faults."""
        if not self.faults(name).is_dir():
            return {}
        paths = [str(FAULTS), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths), "FEDLLM_TEST_FAULTS": str(self.faults(name))}

    def hold(self, name: str, moment: str, server_round: int) -> None:
        """Hold a node's task of a round, ``before`` or ``after`` its app."""
        (self.faults(name) / f"hold-{moment}-{server_round}").touch()

    def wait_until_held(self, name: str, moment: str, server_round: int) -> None:
        """Wait until it is."""
        held = self.faults(name) / f"held-{moment}-{server_round}"
        wait_for(held.exists, f"{name} to be held {moment} its work of round {server_round}")

    def release(self, name: str, moment: str, server_round: int) -> None:
        """Let it go on."""
        (self.faults(name) / f"held-{moment}-{server_round}").unlink()
        (self.faults(name) / f"hold-{moment}-{server_round}").unlink()


def write_experiment(path: Path, tree: dict[str, Any]) -> Path:
    """The experiment's file."""
    path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    return path


def absences(run: RunFolder) -> Absent:
    """Which updates are not in the model, and why, as the run's metrics tell."""
    found: Absent = {}
    rounds = [record for record in run.metrics() if record["kind"] == "round"]
    numbers = [record["round"] for record in rounds]
    assert numbers == list(range(1, len(rounds) + 1)), f"rounds {numbers}"
    for record in rounds:
        items = [*record["failed"], *record["refused"], *record["left"]]
        found[record["round"]] = {item["silo"]: item["reason"] for item in items}
    return found


def check_accounts(run: RunFolder, federation: Federation) -> dict[str, Counter[int]]:
    """Every silo's ledger is whole and has a row for each of its updates that was aggregated.

    Returns:
        Rows of each round in each silo's ledger.
    """
    absent = absences(run)
    rows = {}
    for silo in federation.folder.load().nodes:
        with Ledger(federation.ledger(silo), read_only=True) as ledger:
            assert ledger.verify().ok, silo
            rows[silo] = Counter(entry.round for entry in ledger.entries(run=run.run_id))
        for server_round, who in absent.items():
            if silo not in who:
                assert rows[silo][server_round] >= 1, (silo, server_round, rows[silo])
        assert all(count == 1 for count in rows[silo].values()), "seeded: one release a round"
    return rows


def check_model(run: RunFolder, experiment: Path, folder: Path) -> None:
    """The model is the one of a run in one process where the same answers, and no others, are missing:
    each update is in it, and once."""
    absent = absences(run)

    def withhold(task: Message, reply: Message) -> Message:
        if not task.metadata.message_type.startswith("train"):
            return reply
        server_round = int(task.content[names.CONFIG][names.ROUND])  # type: ignore[call-overload, arg-type]
        silo = reply.content[names.INFO][names.SILO]  # type: ignore[call-overload]
        if silo in absent[server_round]:
            return Message(Error(2, "withheld"), reply_to=task)
        return reply

    reference = RunFolder.create(load_settings(experiment), folder / "reference")
    assert federate(reference, withhold) == "finished"
    assert_same_model(run, reference)


def assert_same_model(run: RunFolder, other: RunFolder) -> None:
    """The last checkpoints agree to 1e-6."""
    first, second = (latest_checkpoint(r.checkpoints_path) for r in (run, other))
    assert first is not None
    assert second is not None
    assert first.round == second.round
    assert sorted(first.params) == sorted(second.params)
    for name, value in second.params.items():
        torch.testing.assert_close(first.params[name], value, rtol=0, atol=1e-6)
