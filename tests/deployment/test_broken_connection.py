"""A node whose connection breaks for good is there again by itself: real SuperNode, TLS, a wire that changes bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployments import Federation, make_folder, wait_for
from wire import Wire

from server.deployment.folder import NODE

pytestmark = pytest.mark.slow


def test_a_changed_byte_ends_the_supernode_and_it_is_started_again(
    tmp_path: Path, word_files: Path
) -> None:
    running = Federation(make_folder(tmp_path / "fedllm", "alpha"), word_files)
    wire = Wire(running.folder.load().ports.nodes)
    file = running.folder.node("alpha") / NODE
    ports = (f":{wire.target}", f":{wire.port}")
    file.write_text(file.read_text(encoding="utf-8").replace(*ports), encoding="utf-8")
    try:
        running.start_server()
        running.start_node("alpha")
        running.wait_until_online("alpha")
        wire.tamper = 1.0
        wait_for(
            lambda: "the SuperNode ends, it has lost its connection" in running.said("alpha"),
            "the SuperNode to end",
        )
        assert wire.changes > 0
        assert "(status 75). Next start in 5 s" in running.said("alpha")
        wire.tamper = 0.0
        # The server may know its lost connection as online for a minute: the node's own log tells.
        log = running.folder.node("alpha") / "logs" / "supernode.log"
        wait_for(
            lambda: log.read_text(encoding="utf-8").count("SuperNode ID:") == 2,
            "its next connection",
        )
        running.wait_until_online("alpha")
    finally:
        running.close()
        wire.close()
