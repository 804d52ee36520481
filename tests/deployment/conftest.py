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
def proxies() -> Iterator[list[subprocess.Popen[bytes]]]:
    """The nginx processes of a test; they end with it."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.terminate()
        process.wait(20)


@pytest.fixture
def start_proxy(proxies: list[subprocess.Popen[bytes]]) -> Callable[[Folder], None]:
    """Starts nginx for a folder."""

    def start(folder: Folder) -> None:
        program = programs.server_programs(folder, folder.load())[-1]
        proxies.append(subprocess.Popen(program.command, cwd=folder.path))
        wait_for(lambda: listens(folder.load().ports.nodes), "nginx to listen")

    return start


@pytest.fixture
def restart_proxy(
    proxies: list[subprocess.Popen[bytes]], start_proxy: Callable[[Folder], None]
) -> Callable[[Folder], None]:
    """Ends the nginx started last and starts another, which reads the configuration anew."""

    def restart(folder: Folder) -> None:
        last = proxies.pop()
        last.terminate()
        last.wait(20)
        start_proxy(folder)

    return restart


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
