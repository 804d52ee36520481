"""What the commands print is whole at 80 columns and in a pipe: digests above all."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from configured_silo import write_silo

DIGEST = "0123456789abcdef" * 4
PATH = "/srv/" + "folder/" * 12 + "silo.toml"


def run(code: str, *, terminal: bool, columns: int = 80) -> str:
    """What a program prints, into a pipe or a terminal of so many columns."""
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "dumb"}
    command = [sys.executable, "-c", code]
    if not terminal:
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, check=True, text=True
        ).stdout
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, env=environment, stdout=theirs, stdin=theirs):
        os.close(theirs)
        told = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            told += piece
    os.close(ours)
    return told.decode()


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_no_word_of_a_table_is_split(terminal: bool) -> None:
    code = (
        "from simulations.output import make_table, print_parts\n"
        "table = make_table('what', 'found', 'more')\n"
        f"table.add_row('the weights of a model', 'minilm: SHA-256 {DIGEST}', 'some words that wrap')\n"
        f"table.add_row('file', '{PATH}', '')\n"
        "print_parts(table)"
    )
    told = run(code, terminal=terminal)
    assert DIGEST in told
    assert PATH in told


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_an_approved_digest_is_on_a_line_of_its_own(terminal: bool, tmp_path: Path) -> None:
    silo = write_silo(tmp_path, None, tmp_path / "x.jsonl")
    from client.executor.approval import approve

    approve(
        tmp_path / "approved.json",
        DIGEST,
        app="fedllm/fedllm 0.1.0",
        note="read by two people, every file of it, on a long afternoon in the library",
    )
    code = (
        "from simulations.cli.main import main\nimport sys\n"
        f"sys.argv = ['fedllm', 'deploy', 'approve', '--list', '--silo', {str(silo)!r}]\nmain()"
    )
    lines = [line.rstrip() for line in run(code, terminal=terminal).splitlines()]
    assert DIGEST in lines
    place = lines.index(DIGEST)
    assert lines[place + 1] == "    fedllm/fedllm 0.1.0"
    assert lines[place + 2].startswith("    approved 20")
    assert lines[place + 3].endswith("library")
