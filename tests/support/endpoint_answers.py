"""A small HTTP server that answers as completion endpoints do, for what a real one cannot be made to say."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Answers(BaseHTTPRequestHandler):
    """Answers like llama.cpp's server (content) or vLLM's (a table), by the length of the prompt."""

    form = "content"
    bodies: list[dict[str, Any]] = []  # noqa: RUF012 - of the test
    keys: list[str | None] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        self.keys.append(self.headers.get("Authorization"))
        share = 1 / (1 + len(body["prompt"]) % 7)
        tokens = {" positive": math.log(share), " negative": math.log(1.01 - share), " a": -9.0}
        told: Any = {"top_logprobs": [tokens]}
        if self.form == "content":
            listed = [{"token": t, "logprob": v} for t, v in tokens.items()]
            told = {"content": [{"token": " a", "top_logprobs": listed}]}
        data = json.dumps({"choices": [{"logprobs": told}]}).encode()
        if self.form == "broken":
            data = b'{"choices": [{"logprobs": null}]}'
        self.send_response(500 if self.form == "failing" else 200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def answering() -> Iterator[str]:
    """The base address of such a server, for a while."""
    Answers.bodies, Answers.keys, Answers.form = [], [], "content"
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
