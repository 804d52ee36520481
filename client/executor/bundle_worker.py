"""The process that runs a bundle's ClientApp: started by :mod:`client.executor.executor`, which has checked it.

A program by itself (``python -P bundle_worker.py SOCKET FOLDER``), for the modules of the bundle have
the same names as those installed here and must be found first: nothing of fedllm is imported from
elsewhere. It answers one task after another, so that what the app has loaded stays loaded.

A frame, either way: three byte strings, each after its length as 8 bytes. Tasks: JSON with the ids of
task, run and node, Flower's Message, Flower's Context. Answers: JSON with ``error`` (empty, or the
constant text where the app failed), Message, Context.
"""

from __future__ import annotations

import importlib
import json
import logging
import socket
import struct
import sys
import tomllib
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

Frame = tuple[bytes, bytes, bytes]
_LENGTHS = struct.Struct("!QQQ")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MOST = 1 << 32
"""Bytes of one part of a frame at most."""


def send(connection: socket.socket, frame: Frame) -> None:
    """Send three byte strings."""
    connection.sendall(_LENGTHS.pack(*map(len, frame)))
    for part in frame:
        connection.sendall(part)


def receive(connection: socket.socket) -> Frame:
    """Receive three byte strings.

    Raises:
        EOFError: the other end is closed.
        ValueError: a part is longer than any frame.
    """
    lengths = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    if max(lengths) > MOST:
        raise ValueError(f"Expected parts of at most {MOST} bytes in a frame, got {max(lengths)}")
    first, second, third = (_exactly(connection, length) for length in lengths)
    return first, second, third


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise EOFError("the other end is closed")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class _SourceLoader(SourceFileLoader):
    """Compiles a module's source at each start: compiled code, which no one has read, is not looked at."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the module's code, from its source."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _import_from_source(folder: Path) -> None:
    """Let modules in a folder be imported from ``.py`` files alone, whatever else lies there."""
    sys.dont_write_bytecode = True
    root = folder.resolve()
    find = FileFinder.path_hook((_SourceLoader, [".py"]))

    def hook(place: str) -> Any:
        if not Path(place).resolve().is_relative_to(root):
            raise ImportError(f"{place} is not in {root}")
        return find(place)

    sys.path_hooks.insert(0, hook)
    sys.path_importer_cache.clear()


def load_app(folder: Path) -> Any:
    """Return the ClientApp that the bundle in a folder names, from its own files.

    Raises:
        ImportError: it was imported from elsewhere.
    """
    tree = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    reference = str(tree["tool"]["flwr"]["app"]["components"]["clientapp"])
    module_name, _, attribute = reference.partition(":")
    _import_from_source(folder)
    sys.path.insert(0, str(folder))
    module = importlib.import_module(module_name)
    file = Path(str(module.__file__)).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ImportError(f"Expected {module_name} of the bundle, found {file}")
    return getattr(module, attribute)


def answer(app: Any, frame: Frame) -> Frame:
    """Run the app on one task."""
    from flwr.common.serde import (
        context_from_proto,
        context_to_proto,
        message_from_proto,
        message_to_proto,
    )
    from flwr.proto.message_pb2 import Context as ProtoContext
    from flwr.proto.message_pb2 import Message as ProtoMessage
    from flwr.supercore.task_identity import TaskIdentity

    ids = json.loads(frame[0])
    TaskIdentity.task_id = ids["task"]
    TaskIdentity.run_id = ids["run"]
    TaskIdentity.node_id = ids["node"]
    message = message_from_proto(ProtoMessage.FromString(frame[1]))
    message.metadata.__dict__["_message_id"] = ids["message"]
    context = context_from_proto(ProtoContext.FromString(frame[2]))
    try:
        reply = app(message, context)
    except (
        Exception
    ):  # its text and its kind may depend on the data: they stay in this process's log
        logging.getLogger("fedllm.client").exception("the app failed")
        return b'{"error": "the app failed"}', b"", b""
    return (
        b'{"error": ""}',
        message_to_proto(reply).SerializeToString(),
        context_to_proto(context).SerializeToString(),
    )


def main() -> None:
    """Answer tasks until the other end of the socket is closed."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, force=True)
    connection = socket.socket(fileno=int(sys.argv[1]))
    app: Any = None
    while True:
        try:
            frame = receive(connection)
        except EOFError:
            return
        try:
            if app is None:
                app = load_app(Path(sys.argv[2]))
            reply = answer(app, frame)
        except Exception:
            logging.getLogger("fedllm.client").exception("the bundle cannot be loaded")
            reply = (b'{"error": "the app failed"}', b"", b"")
        send(connection, reply)


if __name__ == "__main__":
    main()
