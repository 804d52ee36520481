"""Four hosts (network namespaces): a server and three nodes, one of which is cut off during a run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployments import make_folder, wait_for
from faulty_nodes import (
    FaultyFederation,
    absences,
    check_accounts,
    check_model,
    write_experiment,
)
from hosts import SERVER, Hosts, make_hosts

from server.deployment.folder import Folder
from simulations.benchmarks.local_federation import states_of

pytestmark = pytest.mark.slow
SILOS = ["alpha", "beta", "gamma"]


class Machines(FaultyFederation):
    """A federation whose server and nodes have a host each; the operator works on this one."""

    def __init__(self, folder: Folder, words: Path, hosts: Hosts) -> None:
        self.hosts = hosts
        super().__init__(folder, words)

    def command(self, name: str, *words: str) -> list[str]:
        if name not in (SERVER, *SILOS):
            return super().command(name, *words)
        return [*self.hosts.prefix(name), *super().command(name, *words)]

    def call(self, *words: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command("operator", *words), "--folder", str(self.folder.operator)],
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def node_states(self) -> dict[str, str]:
        return states_of(self.folder.operator)


@pytest.fixture
def machines(tmp_path: Path, word_files: Path) -> Iterator[Machines]:
    hosts = make_hosts(*SILOS)
    running = None
    try:
        folder = make_folder(tmp_path / "fedllm", *SILOS, hosts=(hosts.address(SERVER),))
        running = Machines(folder, word_files, hosts)
        running.start_server()
        for name in SILOS:
            running.start_node(name)
        running.wait_until_online(*SILOS)
        yield running
    finally:
        if running is not None:
            running.close()
        hosts.close()


def test_a_host_that_is_cut_off_comes_back_into_the_run(
    machines: Machines, tiny_tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    changes = {"data.silo_names": SILOS, "privacy.epsilon": 1e5, "server.rounds": 4, "seed": 41}
    path = write_experiment(tmp_path / "experiment.toml", tiny_tree(**changes))
    machines.hold("gamma", "after", 2)
    machines.hold("alpha", "before", 3)
    run = machines.submit(path)
    machines.wait_until_held("gamma", "after", 2)
    machines.hosts.cut("gamma")
    machines.release("gamma", "after", 2)  # its answer finds no way
    machines.wait_until_held("alpha", "before", 3)
    assert set(absences(run)[2]) == {"gamma"}
    wait_for(lambda: machines.node_states().get("gamma") == "offline", "the server to miss gamma")
    machines.hosts.heal("gamma")
    machines.wait_until_online("gamma")
    machines.release("alpha", "before", 3)
    assert machines.wait_until_over(run) == "finished", run.state()["message"]
    absent = absences(run)
    assert absent[1] == {}
    assert absent[4] == {}, "gamma is back"
    rows = check_accounts(run, machines)
    assert rows["gamma"][2] == 1, "recorded, and lost on the way"
    check_model(run, path, tmp_path)
