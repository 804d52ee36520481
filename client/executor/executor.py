"""A silo's executor: takes tasks from its SuperNode and runs them with an approved bundle only.

Stands instead of Flower's own ``flower-superexec`` next to ``flower-supernode --isolation process``,
with two differences. The bundle that came with a run is unpacked and imported only where the SHA-256 of
its bytes is on the silo's list (:mod:`client.executor.approval`). And one process serves all tasks of a bundle
(:mod:`client.executor.worker_process`), where Flower starts one for each: the model is loaded once.

``python -m client.executor.executor --silo silo.toml --runtime-api-address 127.0.0.1:9094 --insecure``

Speaks Flower's runtime interface by Flower's own client. Its names are no public interface of Flower's,
and are those of the pinned version.
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from client.config import Limits, SiloConfig, SiloConfigError, load_silo
from client.executor.approval import ApprovalError, digest_of, is_approved
from client.executor.bundle_contents import BundleError
from client.executor.bundle_worker import LOG_FORMAT
from client.executor.task_input import TaskInputError, pull_input
from client.executor.worker_process import WorkerProcess, remove_left_behind

log = logging.getLogger("fedllm.executor")
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})


@dataclass(frozen=True)
class Address:
    """Address of the SuperNode's runtime interface.

    Attributes:
        address: ``host:port``, on this machine.
        certificates: PEM of the authority that it is checked against; None for plain HTTP.
        secret: shared with the SuperNode, which then gives tasks to no one else on this machine.
    """

    address: str
    certificates: bytes | None = None
    secret: bytes | None = None

    def client(self, token: str | None = None) -> RuntimeHttpClient:
        """Return a connection: for taking tasks, or with a task's token for that task."""
        name = "SuperExec" if token is None else "flwr-clientapp"
        interceptors: list[Any] = [RuntimeVersionHttpInterceptor(component_name=name)]
        if token is not None:
            interceptors.append(RuntimeTokenHttpInterceptor(token))
        elif self.secret is not None:
            interceptors.append(
                SuperExecAuthHttpInterceptor(master_secret=self.secret, protected_methods=_ACQUIRE)
            )
        invoker = make_simple_http_retry_invoker()
        gives_up = invoker.should_giveup

        def give_up(error: Exception) -> bool:
            # Flower's own would interrupt this process: for it, each task has one. Here the task alone is over.
            over = isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (
                401,
                403,
            )
            return over or gives_up is None or gives_up(error)

        invoker.should_giveup = give_up
        if token is None:
            invoker.max_tries = (
                1  # the executor's own loop tries again, and can be stopped meanwhile
            )
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=self.certificates is None,
            root_certificates=self.certificates,
            interceptors=interceptors,
            retry_invoker=invoker,
        )


class Executor:
    """Runs a node's tasks.

    Args:
        silo_file: the silo config; read again for each task.
        address: of the SuperNode.
        poll: seconds between two looks for a task.

    Attributes:
        stop: set it to end :meth:`run`.
        worker: the process that has the model loaded, or None.
    """

    def __init__(self, silo_file: Path, address: Address, poll: float = 0.2) -> None:
        self.silo_file = silo_file.absolute()
        self.address = address
        self.poll = poll
        self.stop = threading.Event()
        self.worker: WorkerProcess | None = None
        self._used = time.monotonic()
        self._tasks: RuntimeHttpClient | None = None
        self._next: tuple[str, int] | None = None

    def run(self) -> None:
        """Take and run tasks until ``stop`` is set; a SuperNode that is away is waited for.

        Raises:
            SiloConfigError: the silo config is not valid (asked at the start).
        """
        load_silo(self.silo_file)
        for folder in remove_left_behind():
            log.info("removed %s, which a killed executor had left", folder)
        self._tasks = self.address.client()
        away = False
        try:
            while not self.stop.wait(0 if self._next else self.poll):
                try:
                    task = self._next or self._take()
                except httpx.HTTPError as error:
                    if not away:
                        log.warning(
                            "the SuperNode at %s does not answer: %s", self.address.address, error
                        )
                    away = True
                    continue
                if away:
                    log.info("the SuperNode at %s answers again", self.address.address)
                    away = False
                self._next = None
                if task is not None:
                    self._run_task(*task)
                else:
                    self._end_idle_worker()
        finally:
            self._tasks.close()
            self._end_worker()

    def _take(self) -> tuple[str, int] | None:
        """Take the oldest waiting task at the SuperNode; return its token and number."""
        assert self._tasks is not None
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        found = self._tasks.AcquireTask(request)
        has = found.HasField("task") and found.token
        return (found.token, found.task.task_id) if has else None

    def interrupt(self) -> None:
        """End :meth:`run` soon: a task in progress is answered with an error. For signal handlers."""
        self.stop.set()
        if self.worker is not None:
            self.worker.kill()

    def _run_task(self, token: str, task_id: int) -> None:
        """Answer one task, or lose it. Who waits for a lost one differs, and so does how it is ended.

        The message never came: the SuperNode does not wait for an answer, and the task is called failed.
        Anything else: it does wait, without end, and would not be released by a failed task. Without
        heartbeats it takes the task for crashed after a minute, and answers the server so.
        """
        client = self.address.client(token)
        over = threading.Event()
        heartbeat = HeartbeatSender(lambda: self._beat(client, over))
        try:
            heartbeat.start()
            message, context, bundle = pull_input(
                client, lambda: self._moved_on(over), most=self._most_bytes()
            )
            reply, context = self.answer(message, context, bundle, task_id)
            push_message(client, reply, context)
            failed = reply.has_error()
            status = SubStatus.FAILED if failed else SubStatus.COMPLETED
            push_task_output(client, context, status, str(reply.error.reason) if failed else "")
        except TaskInputError as error:
            log.error("a task is lost: %s", error)
            push_task_output(client, None, SubStatus.FAILED, str(error))
        except Exception as error:  # one task's: the next one is taken all the same
            log.error(
                "a task is lost: %s: %s",
                type(error).__name__,
                error,
                exc_info=not isinstance(error, httpx.HTTPError | RuntimeError),
            )
        finally:
            if heartbeat.is_running:
                heartbeat.stop()
            client.close()
            self._used = time.monotonic()

    def _most_bytes(self) -> int:
        """Return the bytes of a task at most; where the silo's file is not valid, no task is run, and the default
        holds."""
        try:
            return load_silo(self.silo_file).limits.task_bytes
        except SiloConfigError:
            return Limits().task_bytes

    def _moved_on(self, over: threading.Event) -> str | None:
        """Return the reason to stop waiting for the message of a task, or None to keep waiting.

        A SuperNode works on one message at a time. If there is another task, it has given this one's
        message up. The other one is kept, and is the next.
        """
        if self.stop.is_set():
            return "the executor ends"
        if over.is_set():
            return "the task is over for the SuperNode"
        try:
            self._next = self._take()
        except httpx.HTTPError:
            return None
        return None if self._next is None else "the SuperNode has started another task"

    def _beat(self, client: RuntimeHttpClient, over: threading.Event) -> bool:
        """Send the SuperNode a heartbeat for the current task; end a task that is over there."""
        try:
            goes_on = client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
        except httpx.TransportError:
            return False  # tried again
        except httpx.HTTPStatusError as error:
            if error.response.status_code in (502, 503, 504):
                return False
            goes_on = False
        if not goes_on:
            over.set()
            if self.worker is not None:
                log.warning(
                    "the task is over for the SuperNode (was its run stopped?): its process ends"
                )
                self.worker.kill()
        return True

    def answer(
        self, message: Message, context: Context, bundle: bytes, task_id: int
    ) -> tuple[Message, Context]:
        """Return the reply to a task that came with a bundle, and the app's state after it.

        Guarantee: nothing of a bundle is unpacked, read or imported by this function unless the SHA-256
        of its bytes is approved; the reply then says so, and what would approve it.
        """
        digest = digest_of(bundle)
        try:
            silo = load_silo(self.silo_file)
            approved = is_approved(silo.approved, bundle)
        except (SiloConfigError, ApprovalError) as error:
            log.error("no task is run: %s", error)
            return _refusal(message, f"{type(error).__name__}; see the silo's own log"), context
        if not approved:
            log.error("refused the bundle %s: it is not in %s", digest, silo.approved)
            reason = (
                f"Expected an app bundle that the silo {silo.name} has approved, got the one of SHA-256 "
                f"{digest}; `fedllm deploy approve` on the node allows it"
            )
            return _refusal(message, reason), context
        try:
            worker = self._worker_for(bundle, digest)
        except BundleError as error:
            log.error("refused the bundle %s: %s", digest, error)
            return _refusal(message, str(error)), context
        began = time.monotonic()
        reply, context = worker.answer(message, context, task_id, silo.limits.seconds)
        log.info(
            "%s of run %s: %.3f s%s",
            message.metadata.message_type,
            message.metadata.run_id,
            time.monotonic() - began,
            f", failed: {reply.error.reason}" if reply.has_error() else "",
        )
        return reply, context

    def _worker_for(self, bundle: bytes, digest: str) -> WorkerProcess:
        worker = self.worker
        if worker is not None and (worker.digest != digest or not worker.alive):
            self._end_worker()
            worker = None
        if worker is None:
            worker = self.worker = WorkerProcess(bundle, digest, self.silo_file)
            log.info("bundle %s: process %d", digest[:12], worker.pid)
        return worker

    def _end_idle_worker(self) -> None:
        if self.worker is None or time.monotonic() - self._used < 5:
            return
        try:
            silo: SiloConfig | None = load_silo(self.silo_file)
        except SiloConfigError:
            silo = None  # not valid any more: nothing of it may continue
        if silo is None or time.monotonic() - self._used > silo.model.keep:
            log.info("process %d has no task: its memory is given back", self.worker.pid)
            self._end_worker()

    def _end_worker(self) -> None:
        if self.worker is not None:
            self.worker.end()
            self.worker = None


def _refusal(message: Message, reason: str) -> Message:
    return Message(Error(ErrorCode.INVALID_FAB, reason), reply_to=message)


def main(arguments: list[str] | None = None) -> None:
    """Run an executor until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m client.executor.executor", description=__doc__)
    parser.add_argument("--silo", type=Path, required=True, help="the silo config")
    parser.add_argument("--runtime-api-address", default="127.0.0.1:9094", metavar="HOST:PORT")
    secure = parser.add_mutually_exclusive_group(required=True)
    secure.add_argument("--insecure", action="store_true", help="plain HTTP, on this machine")
    secure.add_argument("--root-certificates", type=Path, metavar="PEM")
    parser.add_argument("--superexec-auth-secret-file", type=Path, metavar="FILE")
    parser.add_argument("--poll", type=float, default=0.2, help="seconds between looks for a task")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    secret = given.superexec_auth_secret_file
    address = Address(
        given.runtime_api_address,
        None if given.insecure else given.root_certificates.read_bytes(),
        None if secret is None else load_superexec_auth_secret(secret_file=secret),
    )
    executor = Executor(given.silo, address, given.poll)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: executor.interrupt())
    try:
        executor.run()
    except SiloConfigError as error:
        raise SystemExit(f"fedllm: {error}") from None


if __name__ == "__main__":
    main()
