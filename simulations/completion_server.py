"""A completion endpoint on this machine: llama.cpp's server with the embedded decoder.

    python -m simulations.completion_server [--port 8080] [--model FILE.gguf] [--lora adapter.gguf] [--threads 2]

What ``endpoint.url`` may name (http://127.0.0.1:PORT/v1) to try training through an endpoint. With ``--lora`` it serves
what ``fedllm export --gguf`` wrote, on top of the base model. Needs the package
xllamacpp, which holds llama.cpp's own server: pip install xllamacpp.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedllm.models.embedded import embedded_file

PACKAGE = "xllamacpp"


def why_not() -> str:
    """Return the reason why no such server can be started here; empty if one can."""
    if importlib.util.find_spec(PACKAGE) is None:
        return f"no package {PACKAGE} with llama.cpp's server: pip install {PACKAGE}"
    try:
        embedded_file("smollm2")
    except ValueError as error:
        return str(error)
    return ""


@contextmanager
def completion_server(
    threads: int = 1, wait: float = 120.0, *, model: Path | None = None, lora: Path | None = None
) -> Iterator[str]:
    """Run a server in a separate process during the context; yield its base address.

    Args:
        model: GGUF file; by default the embedded ``smollm2``.
        lora: GGUF adapter on top of it.

    Raises:
        RuntimeError: it cannot be started; the message has its last words.
    """
    if reason := why_not():
        raise RuntimeError(f"Expected a completion server, got none: {reason}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "simulations.completion_server", "--port", str(port)]
    command += [] if model is None else ["--model", str(model)]
    command += [] if lora is None else ["--lora", str(lora)]
    root = Path(__file__).resolve().parents[1]
    found = os.environ.get("PYTHONPATH")
    process = subprocess.Popen(
        [*command, "--threads", str(threads)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(root), found)))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait(process, port, wait)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _wait(process: subprocess.Popen[str], port: int, wait: float) -> None:
    end = time.monotonic() + wait
    while time.monotonic() < end:
        if process.poll() is not None:
            said = "" if process.stderr is None else process.stderr.read()[-500:]
            raise RuntimeError(f"The completion server ended with {process.returncode}: {said}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"The completion server did not answer within {wait:g} s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--model", type=Path, help="GGUF file; by default the embedded smollm2")
    parser.add_argument("--lora", type=Path, help="GGUF adapter on top of the model")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    if reason := why_not():
        parser.exit(1, f"{reason}\n")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(options.model or embedded_file("smollm2"))
    if options.lora is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(options.lora), 1.0)]
    params.hostnames, params.port = ["127.0.0.1"], options.port
    params.n_parallel, params.n_ctx, params.n_threads_http = 4, 4 * 512, 4
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.verbosity = -1
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
