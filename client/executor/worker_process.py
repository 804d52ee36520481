"""The long-lived process that runs an approved bundle, seen from the executor."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

from client.config import ENVIRONMENT
from client.executor import bundle_worker
from client.executor.bundle_contents import read_bundle

PREFIX = "fedllm-bundle-"
"""Name prefix of the folders for unpacked bundles, below the folder for temporary files."""


class WorkerProcess:
    """Runs one bundle's ClientApp in a process that stays, with what it has loaded.

    The bundle is unpacked from the bytes that were checked into a new folder that only this user can
    read, and removed with the process: no earlier unpacking of a bundle of the same name is used. What a killed
    executor left behind, :func:`remove_left_behind` removes: a folder is locked by those who use it.

    Args:
        bundle: the bytes of an approved bundle.
        digest: of them.
        silo_file: the silo config, which the process is told of by its environment.

    Raises:
        BundleError: the bundle holds something that none may hold; nothing of it is run.
    """

    def __init__(self, bundle: bytes, digest: str, silo_file: Path) -> None:
        self.digest = digest
        self._folder, lock = _locked_folder()
        try:
            for name, data in read_bundle(bundle).items():
                file = self._folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
            ours, theirs = socket.socketpair()
            with theirs:
                # The process inherits the lock: it may outlive this one, and imports as it goes.
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-P", bundle_worker.__file__),
                        *(str(theirs.fileno()), str(self._folder)),
                    ],
                    env=os.environ | {ENVIRONMENT: str(silo_file), "PYTHONDONTWRITEBYTECODE": "1"},
                    pass_fds=[theirs.fileno(), lock],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            os.close(lock)
        self._socket = ours

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True if it can take a task."""
        return self._process.poll() is None

    def answer(
        self, message: Message, context: Context, task_id: int, seconds: float
    ) -> tuple[Message, Context]:
        """Return the app's reply to a task, or an error in its place; the app's state after it.

        An error says what kind it is and no more: what an exception says may quote the silo's data, and is in
        the process's own output. After a process that ended, or did not answer in time and was ended, the
        object is of no more use (:attr:`alive`).

        Args:
            seconds: the longest time for the task.
        """
        ids = {
            "task": task_id,
            "run": TaskIdentity.run_id,
            "node": TaskIdentity.node_id,
            "message": message.metadata.message_id,
        }
        task = (
            json.dumps(ids).encode(),
            message_to_proto(message).SerializeToString(),
            context_to_proto(context).SerializeToString(),
        )
        self._socket.settimeout(seconds)
        try:
            bundle_worker.send(self._socket, task)
            told, reply, state = bundle_worker.receive(self._socket)
            error = str(json.loads(told)["error"])
        except TimeoutError:
            self.end()
            return self._error(message, f"no answer within {seconds:g} s (limits.seconds)"), context
        except (EOFError, OSError, ValueError, KeyError):
            self.end()
            how = _ended(self._process.returncode)
            return self._error(message, f"the silo's process ended ({how})"), context
        if error:
            return self._error(message, f"{error}; see the silo's own log"), context
        answered = message_from_proto(ProtoMessage.FromString(reply))
        return answered, context_from_proto(ProtoContext.FromString(state))

    def kill(self) -> None:
        """Kill the process; who waits for its answer gets an error."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """End the process, and remove what was unpacked."""
        self._socket.close()
        self.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def _error(message: Message, reason: str) -> Message:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def remove_left_behind() -> list[Path]:
    """Remove what executors of this user that were killed had unpacked, and no one uses any more.

    Returns:
        The folders that were there.
    """
    removed = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # gone, another user's, or no folder
            continue
        try:
            if os.fstat(lock).st_uid != os.getuid():
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
        except BlockingIOError:  # somebody's process runs it
            continue
        finally:
            os.close(lock)
    return removed


def _locked_folder() -> tuple[Path, int]:
    """Return a new folder that only this user can read, and the descriptor of its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        # Until it is locked, another executor may take it for left behind.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _ended(status: int | None) -> str:
    if status is not None and status < 0:
        return f"by {signal.Signals(-status).name}, which for SIGKILL often means: out of memory"
    return f"with status {status}"
