"""Real processes: secure sums under pinned keys; a node that dies in a round is missing in its sum, and in that alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployments import make_folder
from faulty_nodes import FaultyFederation, write_experiment
from whole_runs import rounds

from fedllm.training.sum_share.mechanism import with_shares
from privacy.ledger.ledger import Ledger
from server.extensions.secure_sum import FILE

pytestmark = pytest.mark.slow
SILOS = ("alpha", "beta", "gamma")


def pin(federation: FaultyFederation, silo: str, **other: str) -> None:
    """Write the other silos' public keys into a silo's file, as its staff would after a call to theirs."""
    folder = federation.folder
    lines = {
        name: folder.public_key(name).read_text(encoding="utf-8").strip()
        for name in SILOS
        if name != silo
    }
    federation.write_silo(silo, secure={"peers": lines | other})


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, word_files: Path) -> Iterator[FaultyFederation]:
    """A server and three nodes, each of which knows the keys of the other two."""
    path = tmp_path_factory.mktemp("secure") / "fedllm"
    running = FaultyFederation(make_folder(path, *SILOS), word_files)
    for name in SILOS:
        pin(running, name)
    with running.up():
        yield running


def test_sums_go_on_without_a_node_that_dies(
    nodes: FaultyFederation, tiny_tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    changes = {
        "privacy.noise_by": "sum",
        "secure.drop_outs": 1,
        "client.local_steps": 1,
        "privacy.randomness": "os",
        "privacy.epsilon": 1e5,
        "server.rounds": 3,
        "server.timeout": 45.0,
        "data.silo_names": list(SILOS),
    }
    path = write_experiment(tmp_path / "experiment.toml", tiny_tree(**changes))
    nodes.hold("gamma", "before", 2)
    run = nodes.submit(path)
    nodes.wait_until_held("gamma", "before", 2)
    nodes.kill_node("gamma")
    assert nodes.wait_until_over(run) == "finished", run.state()["message"]
    assert [record["in_sum"] for record in rounds(run)] == [3, 2, 2]
    assert run.read_json(FILE)["pinned"] == list(SILOS)
    for name, count in {"alpha": 3, "beta": 3, "gamma": 1}.items():
        with Ledger(nodes.ledger(name), read_only=True) as ledger:
            found = [row for row in ledger.entries(run=run.run_id) if row.purpose == "train"]
        assert len(found) == count
        for row in found:
            assert with_shares(row.view("sum-only"), 1) == row.view("server")
    nodes.start_node("gamma")
    nodes.wait_until_online(*SILOS)
    (record,) = (nodes.ledger("alpha").parent / "sums").glob("*.json")
    assert record.stat().st_mode & 0o077 == 0


def test_a_silo_that_knows_another_key_takes_no_part(
    nodes: FaultyFederation, tiny_tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """The key that alpha pins for beta is not the one that the server relays."""
    wrong = nodes.folder.public_key("gamma").read_text(encoding="utf-8").strip()
    pin(nodes, "alpha", beta=wrong)
    changes = {
        "privacy.noise_by": "sum",
        "client.local_steps": 1,
        "privacy.randomness": "os",
        "privacy.epsilon": 1e5,
        "server.rounds": 1,
        "data.silo_names": list(SILOS),
    }
    path = write_experiment(tmp_path / "experiment.toml", tiny_tree(**changes))
    run = nodes.submit(path)
    assert nodes.wait_until_over(run) == "failed"
    message = run.state()["message"]
    assert "Expected the key of silo 'beta' signed by the key pinned for it" in message
    with Ledger(nodes.ledger("alpha"), read_only=True) as ledger:
        assert ledger.entries(run=run.run_id) == []
