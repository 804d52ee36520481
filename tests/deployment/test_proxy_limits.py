"""How much a caller can make the SuperLink hold: nginx with a server behind it that counts what reaches it."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployments import SIGNED, make_folder, wait_for

from server.deployment import setup
from server.deployment.folder import DeploymentError, Folder, PortLimits
from server.deployment.proxy import UNSIGNED, most_memory, nginx_conf

Start = Callable[[Folder], None]
LIMITS = PortLimits(connections=6, requests=40, pushes=3)


class Behind:
    """In the SuperLink's place: reads requests whole, answers when ``free`` is set, and counts."""

    def __init__(self, folder: Folder) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder.server_certificate, folder.server_key)
        self.free = threading.Event()
        self.lock = threading.Lock()
        self.inside = self.most_inside = self.requests = self.body = 0
        self.listener = socket.create_server(("127.0.0.1", folder.load().ports.superlink))
        self.context = context
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            with self.context.wrap_socket(plain, server_side=True) as secure:
                while self._one(secure):
                    pass
        except OSError:
            pass

    def _one(self, secure: ssl.SSLSocket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = secure.recv(65536)
            if not piece:
                return False
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        fields = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        with self.lock:
            self.requests += 1
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        try:
            length, got = int(fields.get(b"content-length", b"0")), len(body)
            while got < length:
                piece = secure.recv(1 << 20)
                if not piece:
                    return False
                got += len(piece)
            self.free.wait(30)
        finally:
            with self.lock:
                self.inside -= 1
                self.body += len(body) + got
        secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = make_folder(tmp_path_factory.mktemp("limits") / "fedllm", "alpha")
    deployment = folder.load().model_copy(update={"port_limits": LIMITS})
    folder.save(deployment)
    setup.write_files(folder, deployment)
    return folder


@pytest.fixture
def behind(folder: Folder, start_proxy: Start) -> Iterator[Behind]:
    made = Behind(folder)
    start_proxy(folder)
    yield made
    made.free.set()
    made.listener.shutdown(socket.SHUT_RDWR)  # ends the accept in progress
    made.listener.close()


def call(folder: Folder) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(folder.ca))
    plain = socket.create_connection(("127.0.0.1", folder.load().ports.nodes), timeout=30)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


def head(target: str, length: int | None, signed: bool = True) -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    more = "".join(f"{name}: {value}\r\n" for name, value in SIGNED.items()) if signed else ""
    return f"POST /v1/fleet/{target} HTTP/1.1\r\nHost: x\r\n{size}\r\n{more}\r\n".encode()


def status_of(caller: ssl.SSLSocket) -> int:
    return int(caller.recv(65536).split()[1])


def ask(folder: Folder, target: str, length: int, body: bytes = b"", signed: bool = True) -> int:
    with call(folder) as caller:
        caller.sendall(head(target, length, signed) + body)
        return status_of(caller)


@pytest.mark.parametrize("target", ["push-object", "pull-messages", "activate-node"])
def test_without_a_signature_no_body_is_read(folder: Folder, behind: Behind, target: str) -> None:
    with call(folder) as caller:
        caller.sendall(head(target, 60_000, signed=False))  # and not one byte of the body
        answer = caller.recv(65536)
    assert answer.split()[1] == b"401"
    assert UNSIGNED.encode() in answer
    assert behind.requests == 0


@pytest.mark.parametrize(
    ("target", "most"),
    [
        ("push-object", 8 * 2**20),
        ("push-messages", 2**20),
        ("pull-messages", 64 * 2**10),
        ("send-node-heartbeat", 64 * 2**10),
        ("activate-node", 64 * 2**10),
    ],
)
def test_each_request_has_a_length(folder: Folder, behind: Behind, target: str, most: int) -> None:
    behind.free.set()
    assert ask(folder, target, most + 1) == 413
    assert behind.requests == 0
    assert ask(folder, target, most, bytes(most)) == 200


def test_a_length_that_is_not_told_is_counted(folder: Folder, behind: Behind) -> None:
    behind.free.set()
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with call(folder) as caller:
        caller.sendall(head("pull-object", None))
        try:
            for _ in range(200):  # 12.5 MiB
                caller.sendall(chunk)
        except OSError:
            return  # nginx has closed it
        assert status_of(caller) in (400, 413)
    assert behind.body <= 2 * 2**20


def test_answers_in_progress_are_bounded_over_all_callers(folder: Folder, behind: Behind) -> None:
    callers = [call(folder) for _ in range(LIMITS.pushes + 2)]
    for caller in callers:
        caller.sendall(head("push-object", 1000) + bytes(1000))
        time.sleep(0.1)
    late = [status_of(caller) for caller in callers[LIMITS.pushes :]]
    assert late == [503, 503]
    assert behind.most_inside == LIMITS.pushes
    behind.free.set()
    assert ask(folder, "send-node-heartbeat", 0) == 200
    assert [status_of(caller) for caller in callers[: LIMITS.pushes]] == [200] * LIMITS.pushes
    assert ask(folder, "push-object", 10, bytes(10)) == 200  # and then again


def test_one_address_has_so_many_requests_in_progress(folder: Folder, behind: Behind) -> None:
    callers = [call(folder) for _ in range(LIMITS.connections + 2)]
    for caller in callers:
        caller.sendall(head("pull-messages", 0))
        time.sleep(0.05)
    wait_for(lambda: behind.inside == LIMITS.connections, "the requests that are let in", 10)
    assert [status_of(caller) for caller in callers[LIMITS.connections :]] == [503, 503]
    behind.free.set()
    assert {status_of(caller) for caller in callers[: LIMITS.connections]} == {200}


def test_one_address_has_so_many_requests_a_second(folder: Folder, behind: Behind) -> None:
    behind.free.set()
    found = []
    with call(folder) as caller:
        for _ in range(6 * LIMITS.requests):
            caller.sendall(head("pull-messages", 0))
            found.append(status_of(caller))
            if found[-1] == 503:
                break
    assert found[: 4 * LIMITS.requests] == [200] * (4 * LIMITS.requests)
    assert found[-1] == 503
    time.sleep(0.5)
    assert ask(folder, "pull-messages", 0) == 200


def test_the_memory_that_is_stated_follows_from_the_configuration(folder: Folder) -> None:
    text = nginx_conf(folder.load())
    assert f"limit_conn pushes {LIMITS.pushes};" in text
    assert text.count("worker_connections 1024;") == 1
    assert "worker_processes 2;" in text
    assert most_memory(folder.load()) == 3 * 8 * 2**20 + 2048 * 64 * 2**10


def test_an_old_deployment_file_has_the_default_limits(tmp_path: Path) -> None:
    (tmp_path / "deployment.toml").write_text('name = "old"\nhosts = ["127.0.0.1"]\n')
    assert Folder(tmp_path).load().port_limits == PortLimits()


def test_limits_under_their_old_name_are_read(tmp_path: Path) -> None:
    (tmp_path / "deployment.toml").write_text(
        'name = "old"\nhosts = ["127.0.0.1"]\n[doors]\nconnections = 7\n'
    )
    assert Folder(tmp_path).load().port_limits == PortLimits(connections=7)
    (tmp_path / "deployment.toml").write_text(
        'hosts = ["127.0.0.1"]\n[doors]\nconnections = 7\n[port_limits]\nconnections = 8\n'
    )
    with pytest.raises(DeploymentError, match="port_limits"):
        Folder(tmp_path).load()
