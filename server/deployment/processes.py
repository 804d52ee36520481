"""Programs kept running: started in order, restarted after a pause when they end, stopped together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from server.deployment.folder import DeploymentError
from server.deployment.programs import Program

Say = Callable[[str], None]
STEADY = 60.0
"""A program that ran for so many seconds before it ended is started again after its shortest pause."""


class Supervisor:
    """Keeps programs running until it is stopped.

    Each program has a process group of its own and appends to its log file. A program that ends is
    started again after its ``restart_after``, and after a longer pause each time that it ends within
    :data:`STEADY` seconds of its start: a node's connection is refused until the server has given its last
    one up (up to a minute after a kill), or until its key is registered. It is never given up: a node is
    to be there again after a night without its server.

    Args:
        programs: in the order of their start; stopped in reverse.
        say: takes one line for people.
        explain: makes of a program that ended, what it wrote last and its exit status the reason in words.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        say: Say,
        explain: Callable[[Program, str, int], str] = lambda program, text, status: last_line(text),
    ) -> None:
        self.programs = list(programs)
        self.say = say
        self.explain = explain
        self.stop = threading.Event()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._log_start: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._pause: dict[str, float] = {}

    def start(self, program: Program) -> None:
        """Start one program.

        Raises:
            DeploymentError: it cannot be started.
        """
        program.log.parent.mkdir(parents=True, exist_ok=True)
        with open(program.log, "ab") as log:
            self._log_start[program.name] = log.tell()
            try:
                process = subprocess.Popen(
                    program.command,
                    cwd=program.folder,
                    env=os.environ | dict(program.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise DeploymentError(f"{program.name} cannot be started: {error}") from None
        self._running[program.name] = process
        self._started[program.name] = time.monotonic()

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Start everything, call ``ready``, and keep it running until ``stop`` is set.

        ``ready`` is called in a separate thread, since it may wait for the programs.
        """
        try:
            for program in self.programs:
                if self.stop.is_set():
                    return
                self.start(program)
            threading.Thread(target=ready, daemon=True).start()
            while not self.stop.wait(0.2):
                self._restart_ended()
        finally:
            self.shut_down()

    def shut_down(self) -> None:
        """Ask the programs to end, in reverse order, and kill what has not ended after 10 seconds."""
        running = [p for p in reversed(self.programs) if p.name in self._running]
        for program in running:
            _signal(self._running[program.name], signal.SIGTERM)
        end = time.monotonic() + 10
        for program in running:
            process = self._running.pop(program.name)
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.say(f"{program.name} did not end in time and is killed")
            # The group as well: what the program started (an app's process) must not stay behind.
            _signal(process, signal.SIGKILL)
            process.wait()

    def _restart_ended(self) -> None:
        now = time.monotonic()
        for program in self.programs:
            process = self._running.get(program.name)
            if process is not None and process.poll() is not None:
                del self._running[program.name]  # what it started may live on, and ends by itself
                pause = self._next_pause(program, now - self._started[program.name])
                self._due[program.name] = now + pause
                self.say(
                    f"{program.name} ended: {self._reason(program, process.returncode)} "
                    f"Next start in {pause:g} s; its log: {program.log}"
                )
            elif process is None and self._due.get(program.name, now) <= now:
                self.say(f"{program.name} is started again")
                self.start(program)

    def _next_pause(self, program: Program, ran: float) -> float:
        """Return seconds until the next start of a program that ended after ``ran`` seconds."""
        last = self._pause.get(program.name)
        pause = program.restart_after
        if last is not None and ran < STEADY:
            pause = max(pause, min(2 * last, program.restart_at_most))
        self._pause[program.name] = pause
        return pause

    def _reason(self, program: Program, status: int) -> str:
        if status < 0:
            return f"killed by {signal.Signals(-status).name}."
        try:
            return f"{self.explain(program, self._written(program), status)} (status {status})."
        except OSError as error:
            return f"status {status}; its log cannot be read: {error}."

    def _written(self, program: Program) -> str:
        with open(program.log, "rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start.get(program.name, 0), end - 20_000))
            return log.read().decode("utf-8", "replace")


def stop_on_signals(stop: threading.Event) -> None:
    """Set ``stop`` on SIGTERM and SIGINT (main thread)."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


def require_free_port(port: int, what: str, host: str = "127.0.0.1") -> None:
    """Refuse to start where something else listens already.

    Raises:
        DeploymentError: the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DeploymentError(
                f"Expected the free port {port} for {what}, it cannot be used: {error.strerror}; "
                f"`ss -ltnp` shows its user"
            ) from None


def last_line(text: str) -> str:
    """Return the last line that is not empty, without a full stop."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it wrote nothing"


def claim(path: Path) -> None:
    """Hold a lock file for as long as this process lives (its descriptor is never closed).

    Raises:
        DeploymentError: another process holds it.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        other = os.read(handle, 32).decode("ascii", "replace").strip()
        os.close(handle)
        raise DeploymentError(
            f"Expected no other process to serve this folder, process {other or '?'} does"
        ) from None
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
