"""Programs kept running: restarted after their pause, stopped with what they started, explained."""

from __future__ import annotations

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from itertools import accumulate
from pathlib import Path

import pytest
from deployments import ROOT, wait_for
from flwr.supernode import start_client_internal

from server.deployment.folder import DeploymentError
from server.deployment.node import why_it_ended
from server.deployment.processes import STEADY, Supervisor, claim, require_free_port
from server.deployment.programs import Program
from server.deployment.supernode import Pauses


def program(folder: Path, name: str, code: str, pause: float = 0.3) -> Program:
    command = (sys.executable, "-c", code)
    return Program(name, command, folder, folder / f"{name}.log", {"MARK": name}, pause)


def test_what_ends_is_started_again_and_all_stop_together(tmp_path: Path) -> None:
    said: list[str] = []
    short = "import os; print('begun', os.environ['MARK'], flush=True); raise SystemExit(3)"
    # Ignores SIGTERM, and leaves a child: both must be gone in the end.
    stubborn = (
        "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "p = subprocess.Popen(['sleep', '1000']); print(p.pid, flush=True); time.sleep(1000)"
    )
    programs = [program(tmp_path, "short", short), program(tmp_path, "stubborn", stubborn)]
    supervisor = Supervisor(programs, said.append)
    running = threading.Thread(target=supervisor.run)
    running.start()
    log = tmp_path / "short.log"
    wait_for(lambda: log.exists() and log.read_text().count("begun short") >= 2, "a restart")
    child = int(wait_for(lambda: (tmp_path / "stubborn.log").read_text(), "the child").split()[0])
    supervisor.stop.set()
    running.join(60)
    assert not running.is_alive()
    assert "short ended: begun short (status 3). Next start in 0.3 s" in said[0]
    assert any("stubborn did not end in time" in line for line in said)
    wait_for(lambda: not _lives(child), "the child to be gone", 20)


def test_pauses_grow_while_a_program_does_not_last(tmp_path: Path) -> None:
    supervisor = Supervisor([], print)
    node = Program("x", ("x",), tmp_path, tmp_path / "x", {}, 5.0, 120.0)
    short = [supervisor._next_pause(node, 3.0) for _ in range(8)]
    assert short == [5, 10, 20, 40, 80, 120, 120, 120]
    assert [supervisor._next_pause(node, ran) for ran in (STEADY, 3.0)] == [5, 10]
    plain = Program("y", ("y",), tmp_path, tmp_path / "y", {}, 5.0)
    assert [supervisor._next_pause(plain, 0.1) for _ in range(3)] == [5, 5, 5]


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        ("logging.getLogger('flwr').error('bad\\nrecord')", 75, "lost its connection: bad record"),
        ("None", 75, "lost its connection: it gave no reason"),
        ("1 / 0", 75, "lost its connection: ZeroDivisionError: division by zero"),
        ("sys.exit(1)", 1, ""),
        (
            "(logging.getLogger('flwr').error('Exit Code: 300\\nno way\\n\\nFor more information, visit x'), "
            "print('Finished', file=sys.stderr), sys.exit(1))",
            1,
            "Exit Code: 300 no way",
        ),
        ("sys.exit()", 0, ""),
        ("sys.exit('no')", 1, ""),
    ],
)
def test_a_supernode_ends_with_its_main_thread(work: str, status: int, said: str) -> None:
    """A thread that goes on for ever does not keep the process."""
    code = (
        "import logging, sys, threading, time\n"
        "from server.deployment.supernode import run_to_the_end\n"
        "threading.Thread(target=time.sleep, args=(3600,)).start()\n"
        f"run_to_the_end(lambda: {work})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status
    assert said in (done.stderr.splitlines() or [""])[-1]


def test_a_node_looks_sooner_where_a_message_came_lately() -> None:
    slept: list[float] = []
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(seconds)

    pauses = Pauses(0.1, sleep, lambda: now)
    pauses.sleep(0.5)  # waits for its app's answer
    answered = now
    while now < answered + 60:
        pauses.sleep(3)
    assert slept[:3] == [0.1, 0.1, 0.1]
    assert slept[-1] == 3.0
    assert slept == sorted(slept)
    waits = zip(slept[1:], accumulate(slept[1:]), strict=True)  # a pause, and when it is over
    assert all(pause <= max(0.1, 0.1 * (over - pause)) + 1e-9 for pause, over in waits)
    pauses.sleep(0.5)
    pauses.sleep(3)
    assert slept[-2:] == [0.1, 0.1]


def test_flowers_supernode_sleeps_as_is_thought_here() -> None:
    """The module whose clock is replaced uses it for these pauses alone."""
    source = inspect.getsource(start_client_internal)
    assert sorted(re.findall(r"\btime\.\w+\([^)]*\)", source)) == [
        "time.sleep(0.5)",
        "time.sleep(0.5)",
        "time.sleep(3)",
    ]


def _lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_killed_program_is_called_so(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor([program(tmp_path, "x", "import time; time.sleep(1000)")], said.append)
    running = threading.Thread(target=supervisor.run)
    running.start()
    process = wait_for(lambda: supervisor._running.get("x"), "the start")
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: said, "the report")
    supervisor.stop.set()
    running.join(60)
    assert said[0].startswith("x ended: killed by SIGKILL.")


def test_what_cannot_start_says_so(tmp_path: Path) -> None:
    missing = Program("x", ("/not/there",), tmp_path, tmp_path / "x.log")
    with pytest.raises(DeploymentError, match="x cannot be started"):
        Supervisor([missing], print).run()


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DeploymentError, match=f"Expected the free port {port} for nodes"):
            require_free_port(port, "nodes")
    require_free_port(port, "nodes")


def test_a_folder_is_served_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from server.deployment.processes import claim;"
        "claim(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[2]
    lock = tmp_path / "state" / "server.pid"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(DeploymentError, match=f"process {holder.pid} does"):
        claim(lock)
    holder.kill()
    holder.communicate()
    claim(lock)


@pytest.mark.parametrize(
    ("wrote", "status", "said"),
    [
        ("ERROR: certificate verify failed: self-signed", 1, "not one that this node trusts"),
        (
            "Failed to initialize the connection.\n[code: 600] SuperNode activation failed.",
            1,
            "refused this node's key",
        ),
        ("one\ntwo\n\n", 1, "two"),
        ("", 1, "it wrote nothing"),
        ("ssl\nthe SuperNode ends, it has lost its connection: x", 75, "its connection: x"),
        ("INFO: fine", 0, "no longer knows this node's key"),
    ],
)
def test_why_a_node_ended(tmp_path: Path, wrote: str, status: int, said: str) -> None:
    ended = Program("supernode", ("x",), tmp_path, tmp_path / "x")
    assert said in why_it_ended(ended, wrote, status)
