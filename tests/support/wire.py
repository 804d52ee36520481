"""A wire between a node and its server that can be cut, and on which bytes can be changed."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading

RESET = struct.pack(
    "ii", 1, 0
)  # SO_LINGER: what is not sent yet is dropped, the other end sees a reset


class Wire:
    """Passes TCP connections on to a port of this machine, badly where it is told to.

    Args:
        target: the port.
        seed: of where it cuts and what it changes.

    Attributes:
        port: where it listens.
        cut: a connection is reset after a random number of bytes, at most this many; None leaves it whole.
        tamper: probability that one bit of a piece of data (of some kilobytes) is changed.
        cuts, changes: how often it did.
    """

    def __init__(self, target: int, seed: int = 0) -> None:
        self.target = target
        self.cut: int | None = None
        self.tamper = 0.0
        self.cuts = 0
        self.changes = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Cut everything, and listen no more."""
        self._listener.close()
        self.cut_now()

    def cut_now(self) -> None:
        """Reset the connections that are open."""
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            _reset(connection)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                _reset(near)
                continue
            with self._lock:
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        passed = 0
        limit = None if self.cut is None else self._random.randint(0, self.cut)
        with contextlib.suppress(OSError):
            while data := source.recv(8192):
                if limit is None and self.cut is not None:  # an old connection
                    limit = passed + self._random.randint(0, self.cut)
                if limit is not None and passed + len(data) > limit:
                    self.cuts += 1
                    break
                if self._random.random() < self.tamper:
                    changed = bytearray(data)
                    changed[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
                    data = bytes(changed)
                    self.changes += 1
                sink.sendall(data)
                passed += len(data)
        with self._lock:
            self._open -= {source, sink}
        _reset(source)
        _reset(sink)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        connection.close()
