"""A deployment's folder, nginx in front of it, and a whole federation of processes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployments import Federation, listens, make_folder, wait_for

from server.deployment import programs
from server.deployment.folder import Folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A deployment with the nodes alpha and beta."""
    return make_folder(tmp_path_factory.mktemp("deployment") / "fedllm", "alpha", "beta")


@pytest.fixture
def start_proxy() -> Iterator[Callable[[Folder], None]]:
    """Starts nginx for a folder; it ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Folder) -> None:
        deployment = folder.load()
        program = programs.server_programs(folder, deployment)[-1]
        started.append(subprocess.Popen(program.command, cwd=folder.path))
        wait_for(lambda: listens(deployment.ports.nodes), "nginx to listen")

    yield start
    for process in started:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory, word_files: Path) -> Iterator[Federation]:
    """A server with TLS, node authentication and nginx, and the nodes alpha and beta."""
    path = tmp_path_factory.mktemp("federation") / "fedllm"
    running = Federation(make_folder(path, "alpha", "beta"), word_files)
    try:
        running.start_server()
        running.start_node("alpha")
        running.start_node("beta")
        yield running
    finally:
        running.close()
