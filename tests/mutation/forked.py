"""Run pytest in a process that is forked from one which has imported the slow libraries already.

Importing torch, transformers, Flower, Ray and PEFT takes most of the time of one mutation's tests. A fork
server (the standard library's, which has no threads) imports them once; each run starts from there. What is
broken on purpose is not among them: the packages of the repository are imported by each run, from its copy.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = (
    "pytest", "hypothesis", "numpy", "scipy.stats", "torch", "transformers", "dp_accounting",
    "flwr.app", "flwr.serverapp", "flwr.clientapp", "pydantic", "typer", "rich.console", "cryptography.x509",
    "safetensors.torch", "peft",
)  # fmt: skip
_OWN = {"tests", "mutation", "privacy", "fedllm", "client", "server", "simulations"}
TIMED_OUT = -9


def run_pytest(
    arguments: Sequence[str], tree: Path, environment: Mapping[str, str], *, timeout: float
) -> tuple[int, str]:
    """Run pytest in a tree; return its exit status (TIMED_OUT past the limit) and what it printed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))  # effective before the first run only
    output = tree.parent / "output.txt"
    process = context.Process(
        target=_child, args=(list(arguments), str(tree), dict(environment), str(output))
    )
    # The process finds this module by its name, which pytest makes another one.
    root = str(Path(__file__).resolve().parents[__name__.count(".")])
    sys.path.append(root)
    try:
        process.start()
    finally:
        sys.path.remove(root)
    try:
        process.join(timeout)
    finally:
        if timed_out := process.exitcode is None:
            _kill_group(process)
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    code = TIMED_OUT if timed_out or process.exitcode is None else process.exitcode
    return code, text


def _kill_group(process: multiprocessing.process.BaseProcess) -> None:
    """Kill the run and whatever it started (it leads a session of its own)."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join()


def _child(arguments: list[str], tree: str, environment: dict[str, str], output: str) -> None:
    """Become a process like `python -m pytest` in the tree, then run it."""
    os.setsid()
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.chdir(tree)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = True
    others = {"", *map(str, Path(__file__).resolve().parents[:3])}
    sys.path[:] = [tree] + [p for p in sys.path if p not in others]
    sys.path_importer_cache.clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in _OWN]:
        del sys.modules[name]  # imported from the unbroken tree by the fork server's own means
    sys.argv = ["pytest", *arguments]
    import pytest

    code = int(pytest.main(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing that a broken test left behind keeps the process alive
